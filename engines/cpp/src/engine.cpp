#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.h"
#include "half.h"

namespace r2mrf_internal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSmallestSide = 32;
constexpr double kLongest = 640;  // LONGEST in predict.py: networks learn blur at about this scale

double ms_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

// The axes of height and width.
std::array<std::size_t, 2> spatial(const TensorSpec &spec) {
  return spec.layout == "NCHW" ? std::array<std::size_t, 2>{2, 3} : std::array<std::size_t, 2>{1, 2};
}

void check_is_detector(const Manifest &manifest, const std::string &name) {
  if (manifest.inputs.size() != 1 || manifest.inputs[0].layout.empty()) {
    throw ArtifactError(name + ": " + manifest.source + " must describe one input, with its layout");
  }
  const TensorSpec &input = manifest.inputs[0];
  const bool bytes = input.layout == "NHWC";
  const auto dtype = dtype_of(input.dtype);
  const std::size_t channels = bytes ? 3 : 1;
  if (input.shape.size() != 4 || input.shape[channels] != 3 || (dtype == Dtype::uint8) != bytes ||
      dtype == Dtype::other) {
    throw ArtifactError(name + ": the input must be uint8 NHWC or float NCHW with 3 channels, not " + input.words());
  }
  const auto map = std::find_if(manifest.outputs.begin(), manifest.outputs.end(),
                                [](const TensorSpec &spec) { return spec.name == "map"; });
  if (map == manifest.outputs.end()) throw ArtifactError(name + " has no output \"map\"");
  if (const auto kind = dtype_of(map->dtype); kind != Dtype::float32 && kind != Dtype::float16) {
    throw ArtifactError(name + ": the output must be float32 or float16, not " + map->words());
  }
  if (const auto largest = manifest.largest.find(input.name);
      largest != manifest.largest.end() &&
      (largest->second.size() != 4 || std::count(largest->second.begin(), largest->second.end(), kFree) != 0)) {
    throw ArtifactError(name + ": the largest shape in the profile of " + input.name + " must be 4 sizes");
  }
}

// (x / 255 - mean) / std in single precision, channel by channel. `convert` rounds to the network's type.
template <typename T, typename Convert>
void normalise(const std::vector<std::uint8_t> &pixels, const Preprocess &with, T *out, Convert convert) {
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t i = c; i < pixels.size(); i += 3) {
      *out++ = convert((static_cast<float>(pixels[i]) / 255.0F - with.mean[c]) / with.std[c]);
    }
  }
}

}  // namespace

Engine::Engine(const std::filesystem::path &artifact, std::uint32_t threads) {
  std::error_code unknown;  // a name that is too long, for example: there is no such file either
  if (!std::filesystem::is_regular_file(artifact, unknown)) throw InputError(artifact.string() + ": no such file");
  manifest_ = contract_of(artifact);
  check_is_detector(manifest_, artifact.string());
  backend_ = open_backend(artifact, manifest_, threads);
  device_ = backend_->device();
  const TensorSpec &input = manifest_.inputs[0];
  const auto [y, x] = spatial(input);
  if (input.shape[y] != kFree && input.shape[x] != kFree) {
    fixed_[0] = static_cast<std::uint32_t>(input.shape[y]);
    fixed_[1] = static_cast<std::uint32_t>(input.shape[x]);
  }
}

std::unique_ptr<ExecutionContext> Engine::take_context() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      auto context = std::move(idle_.back());
      idle_.pop_back();
      return context;
    }
  }
  return backend_->context();
}

r2mrf_times Engine::run(const Pixels &image, const RowSink &sink) {
  const auto begin = Clock::now();
  auto context = take_context();
  const Shape shape = input_shape(image);
  fill(context->input(shape), shape, image);
  const auto prepared = Clock::now();
  const RawMap raw = context->infer();
  const auto inferred = Clock::now();
  const std::size_t count = std::size_t{raw.height} * raw.width;
  std::vector<float> widened;
  const auto *map = static_cast<const float *>(raw.data);
  if (raw.dtype == Dtype::float16) {
    const auto *halves = static_cast<const std::uint16_t *>(raw.data);
    widened.resize(count);
    std::transform(halves, halves + count, widened.begin(), float_from);
    map = widened.data();
  }
  if (!std::all_of(map, map + count, [](float v) { return std::isfinite(v); })) {
    throw ArtifactError("the map is not finite: the artifact's weights or normalisation are damaged; make the artifact again");
  }
  std::vector<float> clipped(image.width);
  resize_map(map, raw.width, raw.height, image.width, image.height, [&](std::uint32_t y, const float *row) {
    std::transform(row, row + image.width, clipped.begin(), [](float v) { return std::clamp(v, 0.0F, 1.0F); });
    sink(y, clipped.data());
  });
  {
    // Only now, so that a context that failed is not used again: it may be in any state.
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(context));
  }
  const auto &t = raw.times;
  return {ms_between(begin, prepared), t.enqueue, t.h2d, t.compute, t.d2h, ms_between(inferred, Clock::now())};
}

// The fixed size of the input. If the size is free: the image's own, scaled down in proportion to fit the profile's
// largest shape (kLongest without a profile), and at least 32 pixels a side. A free batch becomes 1.
Shape Engine::input_shape(const Pixels &image) const {
  const TensorSpec &spec = manifest_.inputs[0];
  Shape shape = spec.shape;
  if (shape[0] == kFree) shape[0] = 1;
  if (fixed_[0] != 0) return shape;
  const std::array<double, 2> sides{static_cast<double>(image.height), static_cast<double>(image.width)};
  const auto axes = spatial(spec);
  const auto profile = manifest_.largest.find(spec.name);
  double scale = 1;
  for (std::size_t i = 0; i < 2; ++i) {
    const double largest = profile == manifest_.largest.end() ? kLongest : static_cast<double>(profile->second[axes[i]]);
    scale = std::min(scale, largest / sides[i]);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    shape[axes[i]] = static_cast<std::int64_t>(std::max(kSmallestSide, std::nearbyint(sides[i] * scale)));
  }
  return shape;
}

// Fills every image of the batch with the same image.
void Engine::fill(void *input, const Shape &shape, const Pixels &image) const {
  const TensorSpec &spec = manifest_.inputs[0];
  const auto [y, x] = spatial(spec);
  const auto height = static_cast<std::uint32_t>(shape[y]);
  const auto width = static_cast<std::uint32_t>(shape[x]);
  const std::size_t values = std::size_t{height} * width * 3;
  const Dtype dtype = dtype_of(spec.dtype);
  if (dtype == Dtype::uint8) {
    resize_rgb(image, width, height, static_cast<std::uint8_t *>(input));
  } else {
    std::vector<std::uint8_t> pixels(values);
    resize_rgb(image, width, height, pixels.data());
    const Preprocess with = manifest_.preprocess.value_or(Preprocess{});
    if (dtype == Dtype::float32) {
      normalise(pixels, with, static_cast<float *>(input), [](float v) { return v; });
    } else {
      normalise(pixels, with, static_cast<std::uint16_t *>(input), half_from);
    }
  }
  const std::size_t bytes = values * size_of(dtype);
  for (std::int64_t n = 1; n < shape[0]; ++n) {
    std::memcpy(static_cast<std::byte *>(input) + static_cast<std::size_t>(n) * bytes, input, bytes);
  }
}

}  // namespace r2mrf_internal
