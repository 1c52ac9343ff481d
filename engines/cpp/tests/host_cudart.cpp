// Replaces the CUDA runtime: two devices in host memory. Each thread has a current device.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "host_cuda.h"

namespace {

thread_local int current = 0;

constexpr cudaError_t kInsufficientDriver = static_cast<cudaError_t>(35);

template <typename Handle>
Handle new_handle() {
  return reinterpret_cast<Handle>(std::malloc(1));
}

template <typename Handle>
cudaError_t free_handle(Handle handle) {
  std::free(handle);
  return cudaSuccess;
}

cudaError_t allocate(void **memory, std::size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory != nullptr ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace

HostCuda &host_cuda() {
  static HostCuda host;
  return host;
}

const char *cudaGetErrorString(cudaError_t) { return "an error of the host's"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int *version) {
  *version = host_cuda().driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = host_cuda().devices;
  return host_cuda().driver < 13000 ? kInsufficientDriver : cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device >= host_cuda().devices) return cudaErrorUnknown;
  current = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
  *value = 9;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaFree(void *memory) { return free_handle(memory); }
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned int) { return allocate(memory, bytes); }
cudaError_t cudaFreeHost(void *memory) { return free_handle(memory); }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int) {
  *stream = new_handle<cudaStream_t>();
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free_handle(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (host_cuda().capturing) return cudaErrorUnknown;
  host_cuda().capturing = true;
  ++host_cuda().captures;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
  host_cuda().capturing = false;
  *graph = new_handle<cudaGraph_t>();
  ++host_cuda().graphs;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int) {
  *event = new_handle<cudaEvent_t>();
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free_handle(event); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *, cudaEvent_t, cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t, unsigned long long) {
  if (!host_cuda().instantiates) return cudaErrorUnknown;
  *executable = new_handle<cudaGraphExec_t>();
  ++host_cuda().graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  --host_cuda().graphs;
  return free_handle(graph);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  --host_cuda().graphs;
  return free_handle(executable);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  return host_cuda().launches ? cudaSuccess : cudaErrorUnknown;
}
