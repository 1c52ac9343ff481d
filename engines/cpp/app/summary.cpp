#include "summary.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <sstream>

namespace {

// The sorted value at index max(n - 1 - int((1 - p / 100) n), 0), computed in single precision like trtexec.
double percentile(const std::vector<double> &ordered, float p) {
  const auto n = static_cast<float>(ordered.size());
  const auto from_end = static_cast<std::size_t>((1.0F - p / 100.0F) * n);
  return ordered[ordered.size() - 1 - std::min(from_end, ordered.size() - 1)];
}

template <typename Of>
std::vector<double> sorted(const std::vector<r2mrf_times> &times, Of of) {
  std::vector<double> values;
  for (const auto &t : times) values.push_back(of(t));
  std::sort(values.begin(), values.end());
  return values;
}

double total(const std::vector<double> &values) { return std::accumulate(values.begin(), values.end(), 0.0); }

std::string line(const std::string &name, const std::vector<double> &ordered) {
  const std::size_t n = ordered.size();
  std::ostringstream out;
  out << name << ": min = " << ordered.front() << " ms, max = " << ordered.back()
      << " ms, mean = " << total(ordered) / static_cast<double>(n)
      << " ms, median = " << (ordered[(n - 1) / 2] + ordered[n / 2]) / 2 << " ms";
  for (const int p : {90, 95, 99}) {
    out << ", percentile(" << p << "%) = " << percentile(ordered, static_cast<float>(p)) << " ms";
  }
  out << '\n';
  return out.str();
}

}  // namespace

std::string summary(const std::vector<r2mrf_times> &times, double walltime, bool on_gpu) {
  const std::string where = on_gpu ? "GPU" : "CPU";
  const auto compute = sorted(times, [](const auto &t) { return t.compute; });
  std::ostringstream out;
  out << "Throughput: " << static_cast<double>(times.size()) / walltime << " qps\n"
      << line("Latency", sorted(times, [](const auto &t) { return t.h2d + t.compute + t.d2h; }))
      << line("Enqueue Time", sorted(times, [](const auto &t) { return t.enqueue; }))
      << line("H2D Latency", sorted(times, [](const auto &t) { return t.h2d; }))
      << line(where + " Compute Time", compute)
      << line("D2H Latency", sorted(times, [](const auto &t) { return t.d2h; }))
      << line("Prepare Time", sorted(times, [](const auto &t) { return t.prepare; }))
      << line("Finish Time", sorted(times, [](const auto &t) { return t.finish; }))
      << "Total Host Walltime: " << walltime << " s\n"
      << "Total " << where << " Compute Time: " << total(compute) / 1e3 << " s\n";
  return out.str();
}
