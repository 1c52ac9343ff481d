// How the tests' CUDA runtime behaves, and what it counts. Its own version is 13.0.
#pragma once

struct HostCuda {
  int driver = 13020;  // 13.2, in the form that cudaDriverGetVersion gives
  int devices = 2;
  bool instantiates = true;  // whether captured graphs can be instantiated
  bool launches = true;      // whether instantiated graphs can be launched
  bool capturing = false;
  int captures = 0;  // begun
  int graphs = 0;    // captured or instantiated, and not destroyed yet
};

HostCuda &host_cuda();
