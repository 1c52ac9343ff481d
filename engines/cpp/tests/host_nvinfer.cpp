// Replaces TensorRT with a library that does not start: like TensorRT 11.4 without a driver, it logs an error and returns
// an invalid pointer.
#include <NvInferRuntime.h>

void *createInferRuntime_INTERNAL(void *logger, std::int32_t) noexcept {
  static_cast<nvinfer1::ILogger *>(logger)->log(nvinfer1::ILogger::Severity::kERROR, "CUDA initialization failure");
  return reinterpret_cast<void *>(0x228);
}

extern "C" {
std::int32_t getInferLibMajorVersion() { return 10; }
std::int32_t getInferLibMinorVersion() { return 0; }
std::int32_t getInferLibPatchVersion() { return 1; }
}
