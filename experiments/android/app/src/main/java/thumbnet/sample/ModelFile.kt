package thumbnet.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipInputStream

const val LABELS_FILE = "labels.txt"

/**
 * Reads the class names out of a model file: its last bytes are a zip archive that holds `labels.txt`, a name a line.
 *
 * `java.util.zip.ZipFile` on Android refuses a file that doesn't start with an archive, so the archive's start is
 * looked up in its directory, which stands at the end.
 */
fun labelsIn(model: ByteBuffer): List<String> {
    val file = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)
    val last = file.capacity() - 22 // an end record without comment
    val end = (last downTo maxOf(0, last - 65535)).firstOrNull { file.getInt(it) == 0x06054b50 }
        ?: error("the model holds no $LABELS_FILE: convert it with its metadata")
    val directory = end - file.getInt(end + 12)
    val archive = directory - file.getInt(end + 16) // 0 where offsets count from the start of the file
    file.position(archive + file.getInt(directory + 42))
    val entries = ByteArray(directory - file.position()).also { file.get(it) }
    ZipInputStream(entries.inputStream()).use { zip ->
        generateSequence { zip.nextEntry }.firstOrNull { it.name == LABELS_FILE } ?: error("no $LABELS_FILE in the model")
        return zip.bufferedReader().readLines()
    }
}
