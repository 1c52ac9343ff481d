// The few functions of the CUDA runtime that an execution context needs. They are loaded when a plan is opened, so a
// program that opens no plan needs no CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <string>

namespace r2mrf_internal {

// A function in a shared library; converts to a pointer of the type that is needed.
class Symbol {
 public:
  explicit Symbol(void *address) : address_(address) {}
  template <typename Function>
  operator Function *() const {
    return reinterpret_cast<Function *>(address_);
  }

 private:
  void *address_;
};

// A library that stays loaded until the process ends.
class SharedLibrary {
 public:
  // Loads the first of `names` that is found. Throws Unavailable, with `cure` in its message, if none is.
  SharedLibrary(std::initializer_list<const char *> names, const char *cure);

  // Throws Unavailable if the library has no such function.
  [[nodiscard]] Symbol symbol(const char *name) const;

 private:
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
  // The process's CUDA runtime. Throws Unavailable if there is none.
  static const Cuda &get();

  // Throws Unavailable if there is no device or no driver, or if the driver is for an older major version of CUDA than
  // the runtime. A driver serves every minor version of its major version.
  void check_driver() const;

  // The calling thread's current device. Throws Unavailable if there is no device or no driver.
  [[nodiscard]] int device() const;
  void set_device(int device) const;

  // Of the current device, such as "8.6". Throws Unavailable if there is no device or no driver.
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

  // What `work` enqueues, as a graph; null if it cannot be captured. The capture ends even if `work` throws.
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
  Cuda()
      : library_({"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
                 "install the CUDA runtime, or name its folder in LD_LIBRARY_PATH") {}
  void check(cudaError_t error) const;
  [[nodiscard]] Graph end_capture(const Stream &stream, bool enqueued) const noexcept;
  [[nodiscard]] Graph forget(Graph graph) const noexcept;  // clears CUDA's last error, which has been dealt with

  SharedLibrary library_;
  decltype(cudaGetErrorString) *get_error_string_ = library_.symbol("cudaGetErrorString");
  decltype(cudaGetLastError) *get_last_error_ = library_.symbol("cudaGetLastError");
  decltype(cudaDriverGetVersion) *driver_get_version_ = library_.symbol("cudaDriverGetVersion");
  decltype(cudaRuntimeGetVersion) *runtime_get_version_ = library_.symbol("cudaRuntimeGetVersion");
  decltype(cudaGetDevice) *get_device_ = library_.symbol("cudaGetDevice");
  decltype(cudaSetDevice) *set_device_ = library_.symbol("cudaSetDevice");
  decltype(cudaGetDeviceCount) *get_device_count_ = library_.symbol("cudaGetDeviceCount");
  decltype(cudaDeviceGetAttribute) *device_get_attribute_ = library_.symbol("cudaDeviceGetAttribute");
  decltype(cudaMalloc) *malloc_ = library_.symbol("cudaMalloc");
  decltype(cudaFree) *free_ = library_.symbol("cudaFree");
  decltype(cudaHostAlloc) *host_alloc_ = library_.symbol("cudaHostAlloc");
  decltype(cudaFreeHost) *free_host_ = library_.symbol("cudaFreeHost");
  decltype(cudaMemcpyAsync) *memcpy_async_ = library_.symbol("cudaMemcpyAsync");
  decltype(cudaStreamCreateWithFlags) *stream_create_ = library_.symbol("cudaStreamCreateWithFlags");
  decltype(cudaStreamDestroy) *stream_destroy_ = library_.symbol("cudaStreamDestroy");
  decltype(cudaStreamSynchronize) *stream_synchronize_ = library_.symbol("cudaStreamSynchronize");
  decltype(cudaStreamBeginCapture) *stream_begin_capture_ = library_.symbol("cudaStreamBeginCapture");
  decltype(cudaStreamEndCapture) *stream_end_capture_ = library_.symbol("cudaStreamEndCapture");
  decltype(cudaEventCreateWithFlags) *event_create_ = library_.symbol("cudaEventCreateWithFlags");
  decltype(cudaEventDestroy) *event_destroy_ = library_.symbol("cudaEventDestroy");
  decltype(cudaEventRecord) *event_record_ = library_.symbol("cudaEventRecord");
  decltype(cudaEventSynchronize) *event_synchronize_ = library_.symbol("cudaEventSynchronize");
  decltype(cudaEventElapsedTime) *event_elapsed_time_ = library_.symbol("cudaEventElapsedTime");
  decltype(cudaGraphInstantiateWithFlags) *graph_instantiate_ = library_.symbol("cudaGraphInstantiateWithFlags");
  decltype(cudaGraphDestroy) *graph_destroy_ = library_.symbol("cudaGraphDestroy");
  decltype(cudaGraphExecDestroy) *graph_exec_destroy_ = library_.symbol("cudaGraphExecDestroy");
  decltype(cudaGraphLaunch) *graph_launch_ = library_.symbol("cudaGraphLaunch");
};

// Makes a device the calling thread's current one, and restores the previous one at the end of the scope. CUDA keeps a
// current device for each thread, and any thread may use a context.
class OnDevice {
 public:
  OnDevice(const Cuda &cuda, int device) : cuda_(cuda), before_(cuda.device()) { cuda.set_device(device); }
  OnDevice(const OnDevice &) = delete;
  OnDevice &operator=(const OnDevice &) = delete;
  ~OnDevice() {
    try {
      cuda_.set_device(before_);
    } catch (const std::exception &) {  // it was current a moment ago
    }
  }

 private:
  const Cuda &cuda_;
  int before_;
};

}  // namespace r2mrf_internal
