// From an image to its map: the C++ twin of Predictor in r2mrf_deploy/predict.py.
#pragma once

#include <r2mrf/r2mrf.h>

#include <array>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "fitting.h"
#include "manifest.h"
#include "resize.h"

namespace r2mrf_internal {

class Engine {
 public:
  // Throws Failure if the artifact cannot be opened, or if its inputs and outputs are not an image and a map.
  Engine(const std::filesystem::path &artifact, std::uint32_t threads);

  [[nodiscard]] const std::string &device() const { return device_; }
  // 0 if it is free.
  [[nodiscard]] std::uint32_t input_height() const { return fixed_[0]; }
  [[nodiscard]] std::uint32_t input_width() const { return fixed_[1]; }

  // Passes the map of an image to `sink` row by row, at the image's size, in [0, 1]. Any number of threads may call this.
  r2mrf_times run(const Pixels &image, const RowSink &sink);

 private:
  std::unique_ptr<ExecutionContext> take_context();  // an idle one, or a new one
  void fill(ExecutionContext &context, const Fitting &fitting, const Pixels &image) const;

  Manifest manifest_;
  std::unique_ptr<Backend> backend_;
  std::string device_;
  std::array<std::uint32_t, 2> fixed_{0, 0};  // height and width
  std::mutex mutex_;
  std::vector<std::unique_ptr<ExecutionContext>> idle_;  // destroyed before backend_
};

}  // namespace r2mrf_internal
