plugins {
    id("com.android.application") version "8.13.2" apply false // needs Gradle 8.13 and JDK 17
    id("org.jetbrains.kotlin.android") version "2.2.21" apply false
}
