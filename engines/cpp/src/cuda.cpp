#include "cuda.h"

#include <dlfcn.h>

#include "error.h"

namespace r2mrf_internal {

SharedLibrary::SharedLibrary(std::initializer_list<const char *> names, const char *cure) {
  for (const char *name : names) {
    handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    name_ = name;
    if (handle_ != nullptr) return;
  }
  const char *why = dlerror();
  throw Unavailable(std::string(why != nullptr ? why : name_ + " does not load") + ": " + cure);
}

Symbol SharedLibrary::symbol(const char *name) const {
  void *found = dlsym(handle_, name);
  if (found == nullptr) throw Unavailable(name_ + " has no function " + name + ": install another version");
  return Symbol(found);
}

const Cuda &Cuda::get() {
  static const Cuda cuda;
  return cuda;
}

void Cuda::check_driver() const {
  int driver = 0;  // 12080 is CUDA 12.8; 0 means that there is no driver
  int runtime = 0;
  check(driver_get_version_(&driver));
  check(runtime_get_version_(&runtime));
  if (driver / 1000 < runtime / 1000) {
    const std::string there = std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
    throw Unavailable((driver == 0 ? "there is no NVIDIA driver" : "the NVIDIA driver is for CUDA " + there) +
                      ", but one for CUDA " + std::to_string(runtime / 1000) + ".0 or later is needed: install one");
  }
  static_cast<void>(device());
}

int Cuda::device() const {
  int count = 0;
  check(get_device_count_(&count));
  if (count == 0) throw Unavailable("there is no CUDA device");
  int current = 0;
  check(get_device_(&current));
  return current;
}

void Cuda::set_device(int device) const { check(set_device_(device)); }

std::string Cuda::compute_capability() const {
  const int current = device();
  int major = 0;
  int minor = 0;
  check(device_get_attribute_(&major, cudaDevAttrComputeCapabilityMajor, current));
  check(device_get_attribute_(&minor, cudaDevAttrComputeCapabilityMinor, current));
  return std::to_string(major) + "." + std::to_string(minor);
}

DeviceMemory Cuda::device_memory(std::size_t bytes) const {
  void *memory = nullptr;
  check(malloc_(&memory, bytes));
  return {memory, free_};
}

PinnedMemory Cuda::pinned_memory(std::size_t bytes) const {
  void *memory = nullptr;
  check(host_alloc_(&memory, bytes, cudaHostAllocDefault));
  return {memory, free_host_};
}

Stream Cuda::stream() const {
  cudaStream_t stream = nullptr;
  check(stream_create_(&stream, cudaStreamNonBlocking));
  return {stream, stream_destroy_};
}

Event Cuda::event() const {
  cudaEvent_t event = nullptr;
  check(event_create_(&event, cudaEventBlockingSync));
  return {event, event_destroy_};
}

void Cuda::copy_in(void *device, const void *pinned, std::size_t bytes, const Stream &stream) const {
  check(memcpy_async_(device, pinned, bytes, cudaMemcpyHostToDevice, stream.get()));
}

void Cuda::copy_out(void *pinned, const void *device, std::size_t bytes, const Stream &stream) const {
  check(memcpy_async_(pinned, device, bytes, cudaMemcpyDeviceToHost, stream.get()));
}

void Cuda::record(const Event &event, const Stream &stream) const { check(event_record_(event.get(), stream.get())); }

void Cuda::wait(const Event &event) const { check(event_synchronize_(event.get())); }

void Cuda::synchronize(const Stream &stream) const { check(stream_synchronize_(stream.get())); }

double Cuda::elapsed(const Event &start, const Event &end) const {
  float ms = 0;
  check(event_elapsed_time_(&ms, start.get(), end.get()));
  return static_cast<double>(ms);
}

void Cuda::launch(const Graph &graph, const Stream &stream) const { check(graph_launch_(graph.get(), stream.get())); }

Graph Cuda::end_capture(const Stream &stream, bool enqueued) const noexcept {
  cudaGraph_t captured = nullptr;
  const bool ended = stream_end_capture_(stream.get(), &captured) == cudaSuccess;
  cudaGraphExec_t graph = nullptr;
  if (ended && enqueued && graph_instantiate_(&graph, captured, 0) != cudaSuccess) graph = nullptr;
  if (captured != nullptr) graph_destroy_(captured);
  return forget({graph, graph_exec_destroy_});
}

Graph Cuda::forget(Graph graph) const noexcept {
  if (graph == nullptr) get_last_error_();
  return graph;
}

void Cuda::check(cudaError_t error) const {
  if (error == cudaSuccess) return;
  throw Unavailable("CUDA error " + std::to_string(static_cast<int>(error)) + ": " + get_error_string_(error));
}

}  // namespace r2mrf_internal
