#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.h"
#include "file.h"
#include "half.h"

namespace r2mrf_internal {
namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

// Throws ArtifactError unless the profile's shape, if there is one, is 4 sizes.
void check_profile(const std::map<std::string, Shape> &shapes, const TensorSpec &input, const std::string &name) {
  const auto shape = shapes.find(input.name);
  if (shape == shapes.end() ||
      (shape->second.size() == 4 && std::count(shape->second.begin(), shape->second.end(), kFree) == 0)) {
    return;
  }
  throw ArtifactError(name + ": the smallest and the largest shape in the profile of " + input.name + " must be 4 sizes");
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
  check_profile(manifest.smallest, input, name);
  check_profile(manifest.largest, input, name);
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
  if (const auto why = why_not_a_file(artifact); !why.empty()) throw InputError(why);
  check_suffix(artifact);
  manifest_ = contract_of(artifact);
  check_is_detector(manifest_, artifact.string());
  backend_ = open_backend(artifact, manifest_, threads);
  device_ = backend_->device();
  const TensorSpec &input = manifest_.inputs[0];
  const auto [y, x] = spatial_axes(input);
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
  const Fitting fitting = fitting_of({image.height, image.width}, manifest_);
  fill(*context, fitting, image);
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
  Size size{raw.height, raw.width};
  std::vector<float> part;
  if (!(fitting.content == fitting.canvas)) {
    part = cut(map, size, fitting);
    map = part.data();
    size = fitting.content;
  }
  std::vector<float> clipped(image.width);
  resize_map(map, size.width, size.height, image.width, image.height, [&](std::uint32_t y, const float *row) {
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

// Fills every image of the batch with the same image. A free batch becomes 1.
void Engine::fill(ExecutionContext &context, const Fitting &fitting, const Pixels &image) const {
  const TensorSpec &spec = manifest_.inputs[0];
  Shape shape = spec.shape;
  if (shape[0] == kFree) shape[0] = 1;
  const auto [y, x] = spatial_axes(spec);
  shape[y] = fitting.canvas.height;
  shape[x] = fitting.canvas.width;
  void *input = context.input(shape);
  const std::size_t values = std::size_t{fitting.canvas.height} * fitting.canvas.width * 3;
  const Dtype dtype = dtype_of(spec.dtype);
  if (dtype == Dtype::uint8) {
    place(image, fitting, static_cast<std::uint8_t *>(input));
  } else {
    std::vector<std::uint8_t> pixels(values);
    place(image, fitting, pixels.data());
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
