import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "thumbnet.sample"
    compileSdk = 36

    defaultConfig {
        applicationId = "thumbnet.sample"
        minSdk = 28 // ImageDecoder
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    androidResources {
        noCompress += "tflite" // a compressed asset can't be mapped into memory
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_17 // by whatever JDK Android Studio brings
    }
}

dependencies {
    implementation("androidx.activity:activity-ktx:1.10.1")
    implementation("com.google.ai.edge.litert:litert:1.4.2")
}
