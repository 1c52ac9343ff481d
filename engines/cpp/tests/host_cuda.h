// What the tests' CUDA runtime does, and the account that it keeps. Its own version is 13.0.
#pragma once

struct HostCuda {
  int driver = 13020;  // as cudaDriverGetVersion says it: 13.2
  int devices = 2;
  bool instantiates = true;  // a captured graph
  bool launches = true;      // an instantiated one
  bool capturing = false;
  int captures = 0;  // that were begun
  int graphs = 0;    // captured or instantiated, and not destroyed
};

HostCuda &host_cuda();
