package thumbnet.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor

// What an exported thumbnet_<variant>.tflite is; tests/test_android.py compares it with a converted model.
const val MODEL_FILE = "thumbnet_int8.tflite"
const val SIGNATURE = "serving_default"
const val INPUT_NAME = "image"
const val OUTPUT_NAME = "probabilities"

/** A thumbnet model, E and S in one file. Works with every variant; not for use by two threads at once. */
class Classifier(model: ByteBuffer) : AutoCloseable {
    private val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(2))
    private val input: Tensor = interpreter.getInputTensorFromSignature(INPUT_NAME, SIGNATURE)
    private val output: Tensor = interpreter.getOutputTensorFromSignature(OUTPUT_NAME, SIGNATURE)
    private val labels = labelsIn(model)
    private val pixels = ByteBuffer.allocateDirect(input.numBytes())
    private val answer = ByteBuffer.allocateDirect(output.numBytes()).order(ByteOrder.nativeOrder())

    /** Side of the square image that the model takes, in pixels. */
    val size: Int = input.shape()[1]

    init {
        check(input.dataType() == DataType.UINT8) { "the model must take bytes, it takes ${input.dataType()}" }
        check(labels.size == output.shape()[1]) { "${labels.size} labels for ${output.shape()[1]} classes" }
    }

    /**
     * Returns labels and probabilities, best first.
     *
     * `argb` holds size x size colours, row by row, as `Bitmap.getPixels` gives them. The model takes red, green and
     * blue as they are, 0 to 255: normalisation is inside it.
     */
    fun classify(argb: IntArray): List<Pair<String, Float>> {
        pixels.rewind()
        for (colour in argb) {
            pixels.put((colour shr 16).toByte()).put((colour shr 8).toByte()).put(colour.toByte())
        }
        pixels.rewind()
        answer.rewind()
        interpreter.runSignature(mapOf(INPUT_NAME to pixels), mapOf(OUTPUT_NAME to answer), SIGNATURE)
        return labels.zip(probabilities()).sortedByDescending { it.second }
    }

    /** Reads the output; int8 models give bytes, which the tensor's own scale and zero point turn into numbers. */
    private fun probabilities(): List<Float> {
        val scale = output.quantizationParams().scale
        val zeroPoint = output.quantizationParams().zeroPoint
        return labels.indices.map { index ->
            when (val type = output.dataType()) {
                DataType.UINT8 -> scale * ((answer.get(index).toInt() and 0xff) - zeroPoint)
                DataType.FLOAT32 -> answer.getFloat(4 * index)
                else -> error("the model must give bytes or floats, it gives $type")
            }
        }
    }

    override fun close() = interpreter.close()
}
