// Which device is current in which thread, on a runtime that only keeps account of that.
#include <thread>

#include "check.h"
#include "cuda.h"
#include "error.h"

using namespace r2mrf_internal;

int main() {
  const Cuda &cuda = Cuda::get();
  cuda.set_device(1);
  const int opened = cuda.device();
  std::thread([&] {
    CHECK(cuda.device() == 0);  // another thread begins with the first device, whatever this one uses
    {
      const OnDevice here(cuda, opened);
      CHECK(cuda.device() == 1);
    }
    CHECK(cuda.device() == 0);
  }).join();
  CHECK_THROWS(Unavailable, OnDevice(cuda, 2), "CUDA error 999");
  CHECK(cuda.device() == 1);
  return exit_code();
}
