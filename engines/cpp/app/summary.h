// trtexec's performance summary, by the rules of r2mrf_deploy/summary.py.
#pragma once

#include <r2mrf/r2mrf.h>

#include <string>
#include <vector>

// times: of every timed inference; walltime: seconds from the first's start to the last's end.
std::string summary(const std::vector<r2mrf_times> &times, double walltime, bool on_gpu);
