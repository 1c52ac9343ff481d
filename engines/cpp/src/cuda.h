// The few functions of the CUDA runtime that a context needs. They are loaded when a plan is opened, so that a program which opens
// none needs no CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <string>

namespace r2mrf_internal {

// A symbol of a library that stays loaded as long as the process.
class SharedLibrary {
 public:
  // The first of `names` that the loader finds. Throws Unavailable where it finds none; `cure` says what to do then.
  SharedLibrary(std::initializer_list<const char *> names, const char *cure);

  template <typename Function>
  void load(Function *&function, const char *name) const {
    function = reinterpret_cast<Function *>(symbol(name));
  }

 private:
  [[nodiscard]] void *symbol(const char *name) const;

  void *handle_ = nullptr;
  std::string name_;
};

using DeviceMemory = std::unique_ptr<void, cudaError_t (*)(void *)>;
using PinnedMemory = std::unique_ptr<void, cudaError_t (*)(void *)>;
using Stream = std::unique_ptr<CUstream_st, cudaError_t (*)(cudaStream_t)>;
using Event = std::unique_ptr<CUevent_st, cudaError_t (*)(cudaEvent_t)>;
using Graph = std::unique_ptr<CUgraphExec_st, cudaError_t (*)(cudaGraphExec_t)>;

class Cuda {
 public:
  // The process's CUDA runtime. Throws Unavailable where there is none.
  static const Cuda &get();

  // Throws Unavailable where there is no device or no driver, or the driver is for an older major version of CUDA than
  // the runtime: it serves every minor version of its own.
  void check_driver() const;

  // The calling thread's current device. Throws Unavailable where there is no device or no driver.
  [[nodiscard]] int device() const;
  void set_device(int device) const;

  // "8.6", of the device in use. Throws Unavailable where there is no device or no driver.
  [[nodiscard]] std::string compute_capability() const;

  [[nodiscard]] DeviceMemory device_memory(std::size_t bytes) const;
  [[nodiscard]] PinnedMemory pinned_memory(std::size_t bytes) const;
  [[nodiscard]] Stream stream() const;
  [[nodiscard]] Event event() const;
  [[nodiscard]] Graph no_graph() const { return {nullptr, graph_exec_destroy_}; }

  void copy_in(void *device, const void *pinned, std::size_t bytes, const Stream &stream) const;
  void copy_out(void *pinned, const void *device, std::size_t bytes, const Stream &stream) const;
  void record(const Event &event, const Stream &stream) const;
  void wait(const Event &event) const;
  void synchronize(const Stream &stream) const;
  [[nodiscard]] double elapsed(const Event &start, const Event &end) const;  // milliseconds
  void launch(const Graph &graph, const Stream &stream) const;

  // What `work` enqueues, as a graph; null where it cannot be captured. The capture ends even where `work` throws.
  template <typename Work>
  [[nodiscard]] Graph capture(const Stream &stream, Work work) const {
    if (stream_begin_capture_(stream.get(), cudaStreamCaptureModeThreadLocal) != cudaSuccess) return forget(no_graph());
    bool enqueued = false;
    try {
      enqueued = work();
    } catch (...) {
      static_cast<void>(end_capture(stream, false));
      throw;
    }
    return end_capture(stream, enqueued);
  }

 private:
  Cuda();
  void check(cudaError_t error) const;
  [[nodiscard]] Graph end_capture(const Stream &stream, bool enqueued) const noexcept;
  [[nodiscard]] Graph forget(Graph graph) const noexcept;  // clears the last error, which was an answer

  SharedLibrary library_;
  decltype(cudaGetErrorString) *get_error_string_ = nullptr;
  decltype(cudaGetLastError) *get_last_error_ = nullptr;
  decltype(cudaDriverGetVersion) *driver_get_version_ = nullptr;
  decltype(cudaRuntimeGetVersion) *runtime_get_version_ = nullptr;
  decltype(cudaGetDevice) *get_device_ = nullptr;
  decltype(cudaSetDevice) *set_device_ = nullptr;
  decltype(cudaGetDeviceCount) *get_device_count_ = nullptr;
  decltype(cudaDeviceGetAttribute) *device_get_attribute_ = nullptr;
  decltype(cudaMalloc) *malloc_ = nullptr;
  decltype(cudaFree) *free_ = nullptr;
  decltype(cudaHostAlloc) *host_alloc_ = nullptr;
  decltype(cudaFreeHost) *free_host_ = nullptr;
  decltype(cudaMemcpyAsync) *memcpy_async_ = nullptr;
  decltype(cudaStreamCreateWithFlags) *stream_create_ = nullptr;
  decltype(cudaStreamDestroy) *stream_destroy_ = nullptr;
  decltype(cudaStreamSynchronize) *stream_synchronize_ = nullptr;
  decltype(cudaStreamBeginCapture) *stream_begin_capture_ = nullptr;
  decltype(cudaStreamEndCapture) *stream_end_capture_ = nullptr;
  decltype(cudaEventCreateWithFlags) *event_create_ = nullptr;
  decltype(cudaEventDestroy) *event_destroy_ = nullptr;
  decltype(cudaEventRecord) *event_record_ = nullptr;
  decltype(cudaEventSynchronize) *event_synchronize_ = nullptr;
  decltype(cudaEventElapsedTime) *event_elapsed_time_ = nullptr;
  decltype(cudaGraphInstantiateWithFlags) *graph_instantiate_ = nullptr;
  decltype(cudaGraphDestroy) *graph_destroy_ = nullptr;
  decltype(cudaGraphExecDestroy) *graph_exec_destroy_ = nullptr;
  decltype(cudaGraphLaunch) *graph_launch_ = nullptr;
};

// Makes a device the calling thread's current one, and afterwards the one that was. CUDA keeps that for each thread, and a
// context may be used by any.
class OnDevice {
 public:
  OnDevice(const Cuda &cuda, int device) : cuda_(cuda), before_(cuda.device()) { cuda.set_device(device); }
  OnDevice(const OnDevice &) = delete;
  OnDevice &operator=(const OnDevice &) = delete;
  ~OnDevice() {
    try {
      cuda_.set_device(before_);
    } catch (const std::exception &) {  // it was this thread's own a moment ago
    }
  }

 private:
  const Cuda &cuda_;
  int before_;
};

}  // namespace r2mrf_internal
