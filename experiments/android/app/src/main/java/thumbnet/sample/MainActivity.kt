package thumbnet.sample

import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle
import android.view.Gravity
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia
import java.io.FileInputStream
import java.nio.channels.FileChannel
import java.util.concurrent.Executors
import kotlin.math.roundToInt

// Side of the square cut out of a photo over its short side: the run's --crop_fraction, 0.875 for photographs.
const val CROP_FRACTION = 0.875f
const val SHOWN = 3

/** Lets the user pick a photo, and shows what the model saw of it and what it says. */
class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor() // the model's only thread
    private val loading = lazy { Classifier(mappedAsset(MODEL_FILE)) }
    private val classifier by loading
    private lateinit var picture: ImageView
    private lateinit var answer: TextView

    private val pick = registerForActivityResult(PickVisualMedia()) { uri -> uri?.let(::show) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        picture = ImageView(this).apply { adjustViewBounds = true }
        answer = TextView(this).apply { textSize = 18f }
        val button = Button(this).apply {
            text = "Pick a photo"
            setOnClickListener { pick.launch(PickVisualMediaRequest(PickVisualMedia.ImageOnly)) }
        }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            gravity = Gravity.CENTER
            listOf(picture, answer, button).forEach(::addView)
        }
        setContentView(column)
    }

    override fun onDestroy() {
        worker.execute { if (loading.isInitialized()) classifier.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun show(photo: Uri) = worker.execute {
        val result = runCatching {
            val size = classifier.size
            val crop = centralCrop(decode(photo, size), size)
            val argb = IntArray(size * size).also { crop.getPixels(it, 0, size, 0, 0, size, size) }
            val best = classifier.classify(argb).take(SHOWN)
            crop to best.joinToString("\n") { (label, probability) -> "%s  %.2f".format(label, probability) }
        }
        runOnUiThread {
            result.onSuccess { (crop, lines) ->
                picture.setImageBitmap(crop)
                answer.text = lines
            }
            result.onFailure { answer.text = "$it" }
        }
    }

    /** Decodes a photo, upright, no larger than need be: a photo of 50 megapixels would take 200 MB. */
    private fun decode(photo: Uri, size: Int): Bitmap =
        ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, photo)) { decoder, info, _ ->
            val side = minOf(info.size.width, info.size.height)
            // a power of two: JPEG's decoder then averages, at other sizes it may skip pixels
            decoder.setTargetSampleSize(maxOf(1, (side * CROP_FRACTION / (2 * size)).toInt().takeHighestOneBit()))
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // getPixels can't read a bitmap on the GPU
        }

    private fun mappedAsset(name: String) = assets.openFd(name).use { file ->
        FileInputStream(file.fileDescriptor).channel
            .map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
    }
}

/**
 * Cuts the central square and scales it to `size`, as `preprocess.eval_crop` does in Python.
 *
 * Differences from Python, of this, of `decode` and of `Bitmap.getPixels`:
 * - there an antialiased filter shrinks the photo in one go, here `ImageDecoder` has read a large one at a half, a
 *   quarter, ... of its size, what is left is halved (the mean of 2 x 2 pixels) while it is twice too large and then
 *   scaled bilinearly;
 * - there EXIF orientation is ignored, here the photo was turned upright;
 * - there the stored values are taken, here colours of another space, such as Display P3, come out converted to sRGB;
 * - there alpha is dropped and the colour kept, here a bitmap holds colours times alpha: what is transparent is 0.
 */
fun centralCrop(photo: Bitmap, size: Int): Bitmap {
    val side = maxOf(1, (minOf(photo.width, photo.height) * CROP_FRACTION).roundToInt())
    var crop = Bitmap.createBitmap(photo, (photo.width - side) / 2, (photo.height - side) / 2, side, side)
    while (crop.width >= 2 * size) {
        crop = Bitmap.createScaledBitmap(crop, crop.width / 2, crop.height / 2, true)
    }
    return Bitmap.createScaledBitmap(crop, size, size, true)
}
