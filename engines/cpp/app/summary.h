// trtexec's performance summary, as in r2mrf_deploy/bench/summary.py.
#pragma once

#include <r2mrf/r2mrf.h>

#include <string>
#include <vector>

// times: of each timed inference. walltime: seconds from the start of the first to the end of the last.
std::string summary(const std::vector<r2mrf_times> &times, double walltime, bool on_gpu);
