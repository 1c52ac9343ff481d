// The part of TensorRT's interface that the library uses, for tests without TensorRT's headers and library. It replaces
// the header of the same name, but its classes are not binary-compatible.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_VERSION 100001

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT, kHALF, kINT8, kINT32, kUINT8, kBF16, kINT64 };
enum class TensorIOMode : std::int32_t { kNONE, kINPUT, kOUTPUT };

struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char *message) noexcept = 0;
};

class IExecutionContext {
 public:
  virtual ~IExecutionContext() = default;
  virtual std::int32_t getOptimizationProfile() const = 0;
  virtual bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) = 0;
  virtual bool setInputShape(const char *name, const Dims &dims) = 0;
  virtual bool setTensorAddress(const char *name, void *memory) = 0;
  virtual Dims getTensorShape(const char *name) const = 0;
  virtual bool enqueueV3(cudaStream_t stream) = 0;
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() = default;
  virtual std::int32_t getNbIOTensors() const = 0;
  virtual const char *getIOTensorName(std::int32_t index) const = 0;
  virtual TensorIOMode getTensorIOMode(const char *name) const = 0;
  virtual Dims getTensorShape(const char *name) const = 0;
  virtual DataType getTensorDataType(const char *name) const = 0;
  virtual std::int32_t getTensorBytesPerComponent(const char *name) const = 0;
  virtual IExecutionContext *createExecutionContext() = 0;
};

class IRuntime {
 public:
  virtual ~IRuntime() = default;
  virtual void setEngineHostCodeAllowed(bool allowed) = 0;
  virtual ICudaEngine *deserializeCudaEngine(const void *plan, std::size_t bytes) = 0;
};

}  // namespace nvinfer1

extern "C" void *createInferRuntime_INTERNAL(void *logger, std::int32_t version) noexcept;
