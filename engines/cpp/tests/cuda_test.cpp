// Devices, the driver's version and captured graphs, with the CUDA runtime of host_cudart.cpp.
#include <thread>

#include "check.h"
#include "cuda.h"
#include "error.h"
#include "host_cuda.h"

using namespace r2mrf_internal;

namespace {

void test_each_thread_has_its_device(const Cuda &cuda) {
  cuda.set_device(1);
  const int opened = cuda.device();
  std::thread([&] {
    CHECK(cuda.device() == 0);  // a new thread begins with the first device, whatever this one uses
    {
      const OnDevice here(cuda, opened);
      CHECK(cuda.device() == 1);
    }
    CHECK(cuda.device() == 0);
  }).join();
  CHECK_THROWS(Unavailable, OnDevice(cuda, 2), "CUDA error 999");
  CHECK(cuda.device() == 1);
}

void test_driver(const Cuda &cuda) {
  host_cuda() = {};
  cuda.check_driver();
  host_cuda().driver = 13000;  // a driver serves every minor version of its major version
  cuda.check_driver();
  host_cuda().driver = 14010;
  cuda.check_driver();
  host_cuda().driver = 12080;
  CHECK_THROWS(Unavailable, cuda.check_driver(), "for CUDA 12.8, but one for CUDA 13.0 or later is needed");
  host_cuda().driver = 0;
  CHECK_THROWS(Unavailable, cuda.check_driver(), "there is no NVIDIA driver, but one for CUDA 13.0 or later is needed");
  host_cuda() = {};
  host_cuda().devices = 0;
  CHECK_THROWS(Unavailable, cuda.check_driver(), "there is no CUDA device");
}

void test_capture(const Cuda &cuda) {
  const Stream stream = cuda.stream();
  const auto enqueued = [] { return true; };
  host_cuda() = {};
  CHECK(cuda.capture(stream, enqueued) != nullptr);
  CHECK(cuda.capture(stream, [] { return false; }) == nullptr);
  host_cuda().instantiates = false;
  CHECK(cuda.capture(stream, enqueued) == nullptr);
  CHECK_THROWS(InputError, cuda.capture(stream, []() -> bool { throw InputError("not now"); }), "not now");
  CHECK(!host_cuda().capturing);
  CHECK(host_cuda().captures == 4);
  CHECK(host_cuda().graphs == 0);
}

}  // namespace

int main() {
  const Cuda &cuda = Cuda::get();
  test_each_thread_has_its_device(cuda);
  test_driver(cuda);
  test_capture(cuda);
  return exit_code();
}
