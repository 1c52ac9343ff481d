// The C API and the C++ header, on artifacts whose maps are known: 0.5 R + 0.3 G + 0.2 B.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <r2mrf/r2mrf.hpp>
#include <string>
#include <thread>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include "check.h"

namespace {

constexpr float kNear = 2e-6F;  // three products and a sum of values up to 1, in single precision

std::vector<std::uint8_t> flat(std::uint32_t width, std::uint32_t height, std::uint8_t r, std::uint8_t g, std::uint8_t b) {
  std::vector<std::uint8_t> pixels;
  for (std::size_t i = 0; i < std::size_t{width} * height; ++i) pixels.insert(pixels.end(), {r, g, b});
  return pixels;
}

bool all_near(const std::vector<float> &values, float wanted) {
  for (const float v : values) {
    if (!(std::abs(v - wanted) <= kNear)) return false;
  }
  return true;
}

// Alternating black and white columns.
std::vector<std::uint8_t> columns(std::uint32_t width, std::uint32_t height) {
  std::vector<std::uint8_t> pixels;
  for (std::size_t i = 0; i < std::size_t{width} * height; ++i) {
    pixels.insert(pixels.end(), 3, i % width % 2 == 0 ? std::uint8_t{0} : std::uint8_t{255});
  }
  return pixels;
}

template <typename Call>
void check_error(Call call, r2mrf_status status, const std::string &part) {
  try {
    static_cast<void>(call());
    std::fprintf(stderr, "nothing was thrown, but \"%s\" was expected\n", part.c_str());
  } catch (const r2mrf::Error &e) {
    if (e.status() == status && std::string(e.what()).find(part) != std::string::npos) return;
    std::fprintf(stderr, "expected \"%s\" and status %d: %s, %d\n", part.c_str(), status, e.what(), e.status());
  }
  ++failures;
}

void test_known_maps(const std::string &folder) {
  for (const char *name : {"weighted.onnx", "weighted.xml", "tensor.onnx", "dynamic.onnx"}) {
    const r2mrf::Engine engine(folder + name);
    for (const auto &[width, height] : {std::pair{64U, 48U}, {1U, 1U}, {317U, 451U}, {1U, 300U}}) {
      const auto pixels = flat(width, height, 200, 100, 50);
      CHECK(all_near(engine.run({pixels.data(), width, height}).values, 140 / 255.0F));
      CHECK(all_near(engine.run({pixels.data(), width, height, 0, R2MRF_BGR}).values, 95 / 255.0F));
      CHECK(engine.run_u8({pixels.data(), width, height}).values == std::vector<std::uint8_t>(std::size_t{width} * height, 140));
    }
    CHECK(r2mrf::last_times().compute > 0);
  }
  const r2mrf::Engine normalised(folder + "normalised.onnx");  // 0.5 (R - 0.1) / 0.5 + 0.3 (G - 0.2) / 0.8 + ...
  const auto pixels = flat(64, 48, 200, 100, 50);
  CHECK(all_near(normalised.run({pixels.data(), 64, 48}).values, 0.8294118F));
  CHECK(all_near(normalised.run({pixels.data(), 64, 48, 0, R2MRF_BGR}).values, 0.5352941F));
  CHECK(r2mrf::Engine(folder + "weighted.onnx").input_size().width == 64);
  CHECK(r2mrf::Engine(folder + "dynamic.onnx").input_size().width == 0);
}

// The size of an image when the network's is free: columns turn grey if it shrinks, and keep their contrast otherwise.
void test_largest_sizes(const std::string &folder) {
  const auto contrast = [](const r2mrf::Engine &engine, std::uint32_t width, std::uint32_t height) {
    const auto pixels = columns(width, height);
    const auto values = engine.run({pixels.data(), width, height}).values;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    return *most - *least;
  };
  const r2mrf::Engine profiled(folder + "dynamic.onnx");  // 40 rows of 160
  CHECK(contrast(profiled, 160, 40) > 0.99F);
  CHECK(contrast(profiled, 160, 80) < 0.2F);
  CHECK(contrast(profiled, 320, 40) < 0.2F);
  const r2mrf::Engine without(folder + "free.onnx");  // 640
  CHECK(contrast(without, 640, 32) > 0.99F);
  CHECK(contrast(without, 1280, 64) < 0.2F);
  CHECK(contrast(r2mrf::Engine(folder + "half_size.onnx"), 320, 32) > 0.99F);
  CHECK(contrast(r2mrf::Engine(folder + "half_size.onnx"), 640, 32) < 0.2F);
}

// Columns that fill the height of the network's input keep their contrast if the aspect is kept; stretched, they turn grey.
void test_letterbox(const std::string &folder) {
  const auto pixels = columns(128, 48);
  const auto contrast = [&](const char *name, std::uint32_t width) {
    const auto values = r2mrf::Engine(folder + name).run({pixels.data(), width, 48, 128 * 3}).values;
    CHECK(values.size() == std::size_t{width} * 48);
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    return *most - *least;
  };
  CHECK(contrast("letterbox.onnx", 40) > 0.99F);  // not enlarged to 64
  CHECK(contrast("weighted.onnx", 40) < 0.99F);
  CHECK(contrast("letterbox.onnx", 128) < 0.2F);  // shrunk to 64
}

// Gaps between rows do not affect the map, and are not written to.
void test_strides(const std::string &folder) {
  const r2mrf::Engine engine(folder + "weighted.onnx");
  r2mrf_engine *raw = nullptr;
  CHECK(r2mrf_open((folder + "weighted.onnx").c_str(), 1, &raw) == R2MRF_OK);
  std::vector<std::uint8_t> gapped(48 * 200, 255);
  for (std::size_t y = 0; y < 48; ++y) std::memset(&gapped[y * 200], 50, 64 * 3);
  std::vector<float> map(48 * 70, -1);
  CHECK(r2mrf_run_f32(raw, gapped.data(), 64, 48, 200, R2MRF_RGB, map.data(), 70 * sizeof(float)) == R2MRF_OK);
  for (std::size_t i = 0; i < map.size(); ++i) CHECK(std::abs(map[i] - (i % 70 < 64 ? 50 / 255.0F : -1)) <= kNear);
  r2mrf_close(raw);
}

void check_open(const std::string &path, r2mrf_status status, const char *part) {
  auto *engine = reinterpret_cast<r2mrf_engine *>(1);
  CHECK(r2mrf_open(path.c_str(), 0, &engine) == status);
  CHECK(engine == nullptr);
  const std::string message = r2mrf_last_error();
  if (message.find(part) == std::string::npos) {
    std::fprintf(stderr, "%s: expected \"%s\" in \"%s\"\n", path.c_str(), part, message.c_str());
    ++failures;
  }
  // one line that is safe to print: no control characters, and no bytes that never occur in UTF-8
  CHECK(std::none_of(message.begin(), message.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f || byte >= 0xf8;
  }));
}

// OpenVINO tries its readers of other formats on a file that is not ONNX, and loading them leaks memory.
class NoLeakCheck {
 public:
#ifdef __SANITIZE_ADDRESS__
  NoLeakCheck() { __lsan_disable(); }
  ~NoLeakCheck() { __lsan_enable(); }
#else
  NoLeakCheck() = default;
  ~NoLeakCheck() = default;
#endif
  NoLeakCheck(const NoLeakCheck &) = delete;
  NoLeakCheck &operator=(const NoLeakCheck &) = delete;
};

// Artifacts with a contract inside the file and no manifest beside it.
void test_alone(const std::string &folder) {
  const auto pixels = flat(64, 48, 200, 100, 50);
  CHECK(all_near(r2mrf::Engine(folder + "pending.onnx").run({pixels.data(), 64, 48}).values, 140 / 255.0F));
  if (r2mrf::Engine(folder + "weighted.onnx").device().rfind("OpenVINO", 0) != 0) return;  // known_backend.cpp reads no file
  for (const std::string suffix : {".onnx", ".xml"}) {
    const r2mrf::Engine engine(folder + "alone" + suffix);
    CHECK(all_near(engine.run({pixels.data(), 64, 48}).values, 140 / 255.0F));
    if (suffix == ".xml") check_open(folder + "fifo_weights.xml", R2MRF_ARTIFACT, "fifo_weights.bin is a FIFO");
    check_open(folder + "alone_broken" + suffix, R2MRF_ARTIFACT, "the contract inside it cannot be used");
    check_open(folder + "alone_bent" + suffix, R2MRF_ARTIFACT, "the contract inside it cannot be used");
    check_open(folder + "alone_deep" + suffix, R2MRF_ARTIFACT, "nested too deeply");
    check_open(folder + "alone_large" + suffix, R2MRF_ARTIFACT, "too large");
    check_open(folder + "alone_other" + suffix, R2MRF_ARTIFACT, "the contract inside it says map");
    check_open(folder + "alone_plan" + suffix, R2MRF_ARTIFACT, "the contract inside it describes a file of kind \"plan\"");
  }
}

void test_artifacts_refused(const std::string &folder) {
  check_open(folder + "nothing.onnx", R2MRF_INPUT, "no such file");
  check_open(folder, R2MRF_INPUT, "is a folder");
  check_open(folder + "fifo.onnx", R2MRF_INPUT, "only regular files are read");
  check_open(folder + "fifo_manifest.onnx", R2MRF_ARTIFACT, "fifo_manifest.onnx.json is a FIFO");
  check_open(folder + "fifo_companion.onnx", R2MRF_ARTIFACT, "fifo is a FIFO");
  check_open("/dev/null", R2MRF_INPUT, "only regular files are read");
  check_open(folder + "as_onnx.xml", R2MRF_ARTIFACT, "describes a file of kind \"onnx\"");
  check_open(folder + "weights.pth", R2MRF_ARTIFACT, "weights.pth -o weights.onnx");
  check_open(folder + "weights.pth.tar", R2MRF_ARTIFACT, "is a checkpoint, which has to be exported first: r2mrf export");
  check_open(folder + "weights.safetensors", R2MRF_ARTIFACT, "is a checkpoint");
  check_open(folder + "photo.jpg", R2MRF_ARTIFACT, "only .onnx, .xml and .plan");
  check_open(folder + "loop.onnx", R2MRF_INPUT, "no such file");
  check_open(folder + std::string(5000, 'x') + ".onnx", R2MRF_INPUT, "no such file");
  check_open(folder + "no_manifest.onnx", R2MRF_ARTIFACT, "has no manifest beside it");
  check_open(folder + "not_json.onnx", R2MRF_ARTIFACT, "is not a manifest");
  check_open(folder + "not_utf8.onnx", R2MRF_ARTIFACT, "is not a manifest");
  check_open(folder + "coloured.onnx", R2MRF_ARTIFACT, "[31mred");
  check_open(folder + "large_manifest.onnx", R2MRF_ARTIFACT, "too large");
  check_open(folder + "changed.onnx", R2MRF_ARTIFACT, "SHA-256 differs");
  check_open(folder + "changed_weights.xml", R2MRF_ARTIFACT, "changed_weights.bin does not match");
  check_open(folder + "unlisted_weights.xml", R2MRF_ARTIFACT, "do not list unlisted_weights.bin");
  check_open(folder + "long_companion.onnx", R2MRF_ARTIFACT, "no such file; it belongs to long_companion.onnx");
  {
    [[maybe_unused]] const NoLeakCheck pardon;
    check_open(folder + "damaged.onnx", R2MRF_ARTIFACT, "cannot open");
  }
  check_open(folder + "other_shape.onnx", R2MRF_ARTIFACT, "its manifest says map");
  check_open(folder + "other_kind.onnx", R2MRF_ARTIFACT, "its manifest describes a file of kind \"plan\"");
  check_open(folder + "no_map.onnx", R2MRF_ARTIFACT, "no output \"map\"");
  check_open(folder + "escape.onnx", R2MRF_ARTIFACT, "is not in the same folder");
  if (std::strstr(r2mrf_backends(), "tensorrt") == nullptr) {
    check_open(folder + "cut.plan", R2MRF_UNAVAILABLE, "needs the backend tensorrt");
  } else {
    check_open(folder + "cut.plan", R2MRF_ARTIFACT, "truncated after 34 bytes");
#ifdef R2MRF_TEST_RTX  // the library is installed and found
    check_open(folder + "other_version.plan", R2MRF_ARTIFACT, "is installed: build it again");
#endif
  }
}

void test_runs_refused(const std::string &folder) {
  const auto pixels = flat(64, 40, 1, 2, 3);
  const r2mrf::Engine not_finite(folder + "not_finite.onnx");
  check_error([&] { return not_finite.run({pixels.data(), 64, 40}); }, R2MRF_ARTIFACT, "not finite");
  check_error([&] { return not_finite.run_u8({pixels.data(), 64, 40}); }, R2MRF_ARTIFACT, "not finite");
  const r2mrf::Engine said_free(folder + "said_free.onnx");
  if (said_free.device().rfind("OpenVINO", 0) == 0) {  // the manifest says that sizes are free, but the model's are not
    check_error([&] { return said_free.run({pixels.data(), 64, 40}); }, R2MRF_ARTIFACT, "OpenVINO");
  }
}

void test_wrapper_refuses(const std::string &folder) {
  r2mrf::Engine engine(folder + "weighted.onnx");
  const auto pixels = flat(8, 8, 1, 2, 3);
  check_error([&] { return engine.run({pixels.data(), 0, 4}); }, R2MRF_INPUT, "0x4 pixels");
  check_error([&] { return engine.run_u8({pixels.data(), 4, 0}); }, R2MRF_INPUT, "4x0 pixels");
  constexpr std::uint32_t kMost = 0xffffffffU;
  check_error([&] { return engine.run({pixels.data(), kMost, kMost}); }, R2MRF_INPUT, "4294967295x4294967295 pixels");
#ifndef __SANITIZE_ADDRESS__  // it ends a program that asks for so much memory
  check_error([&] { return engine.run({pixels.data(), 1U << 30U, 1U << 30U}); }, R2MRF_INPUT, "not enough memory");
#endif
  const r2mrf::Engine moved = std::move(engine);
  CHECK(!moved.device().empty());
  // cppcheck-suppress accessMoved
  check_error([&] { return engine.device(); }, R2MRF_USAGE, "engine is null");
  // cppcheck-suppress accessMoved
  check_error([&] { return engine.run({pixels.data(), 8, 8}); }, R2MRF_USAGE, "engine is null");
}

void test_arguments_refused(const std::string &folder) {
  r2mrf_engine *engine = nullptr;
  CHECK(r2mrf_open(nullptr, 0, &engine) == R2MRF_USAGE);
  CHECK(r2mrf_open((folder + "weighted.onnx").c_str(), 0, nullptr) == R2MRF_USAGE);
  CHECK(r2mrf_open((folder + "weighted.onnx").c_str(), 0, &engine) == R2MRF_OK);
  CHECK(std::strcmp(r2mrf_last_error(), "") == 0);
  const auto pixels = flat(8, 8, 1, 2, 3);
  std::vector<float> map(64);
  const auto run = [&](r2mrf_engine *e, const std::uint8_t *p, std::uint32_t w, std::uint32_t h, std::size_t stride,
                       r2mrf_color color, float *m, std::size_t map_stride) {
    const auto status = r2mrf_run_f32(e, p, w, h, stride, color, m, map_stride);
    CHECK((status == R2MRF_OK) == (std::strcmp(r2mrf_last_error(), "") == 0));
    return status;
  };
  CHECK(run(engine, pixels.data(), 8, 8, 24, R2MRF_RGB, map.data(), 32) == R2MRF_OK);
  CHECK(run(nullptr, pixels.data(), 8, 8, 24, R2MRF_RGB, map.data(), 32) == R2MRF_USAGE);
  CHECK(run(engine, nullptr, 8, 8, 24, R2MRF_RGB, map.data(), 32) == R2MRF_USAGE);
  CHECK(run(engine, pixels.data(), 8, 8, 24, R2MRF_RGB, nullptr, 32) == R2MRF_USAGE);
  CHECK(run(engine, pixels.data(), 8, 8, 24, 7, map.data(), 32) == R2MRF_USAGE);
  CHECK(run(engine, pixels.data(), 0, 8, 24, R2MRF_RGB, map.data(), 32) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 8, 0, 24, R2MRF_RGB, map.data(), 32) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 0, 8, 24, R2MRF_RGB, nullptr, 32) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 8, 8, 23, R2MRF_RGB, map.data(), 32) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 8, 8, 24, R2MRF_RGB, map.data(), 31) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 8, 8, 24, R2MRF_RGB, map.data(), 33) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 8, 8, SIZE_MAX, R2MRF_RGB, map.data(), 32) == R2MRF_INPUT);
  CHECK(run(engine, pixels.data(), 0xffffffffU, 1, SIZE_MAX, R2MRF_RGB, map.data(), 32) == R2MRF_INPUT);
  std::uint32_t side = 0;
  CHECK(r2mrf_input_size(nullptr, &side, &side) == R2MRF_USAGE);
  CHECK(r2mrf_input_size(engine, nullptr, &side) == R2MRF_USAGE);
  CHECK(r2mrf_last_times(nullptr) == R2MRF_USAGE);
  CHECK(r2mrf_device(nullptr) == nullptr);
  r2mrf_close(engine);
  r2mrf_close(nullptr);
}

// Eight threads use one engine, each with its own colour, and none gets the map of another.
void test_threads(const std::string &folder) {
  const r2mrf::Engine engine(folder + "dynamic.onnx");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 8; ++t) {
    threads.emplace_back([&engine, &wrong, t] {
      const std::uint32_t width = 40 + t;
      const auto grey = static_cast<std::uint8_t>(20 * t + 10);
      const auto pixels = flat(width, 50, grey, grey, grey);
      for (int i = 0; i < 50; ++i) {
        if (!all_near(engine.run({pixels.data(), width, 50}).values, static_cast<float>(grey) / 255.0F)) ++wrong;
        r2mrf_engine *none = nullptr;  // each thread sees only its own error
        if (r2mrf_open(std::to_string(t).c_str(), 0, &none) != R2MRF_INPUT ||
            std::string(r2mrf_last_error()).rfind(std::to_string(t), 0) != 0) {
          ++wrong;
        }
      }
    });
  }
  for (auto &thread : threads) thread.join();
  CHECK(wrong == 0);
}

// The number of open file descriptors of this process.
std::ptrdiff_t open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return std::distance(begin(files), end(files));
}

// No file stays open. The leak sanitizer checks memory.
void test_open_and_close(const std::string &folder, int cycles) {
  const std::string good = folder + "weighted.onnx";
  const auto before = open_files();
  for (int i = 0; i < cycles; ++i) {
    r2mrf_engine *engine = nullptr;
    CHECK(r2mrf_open(good.c_str(), 1, &engine) == R2MRF_OK);
    r2mrf_close(engine);
  }
  CHECK(open_files() == before);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const std::string folder = std::string(argv[1]) + "/";
  test_known_maps(folder);
  test_largest_sizes(folder);
  test_letterbox(folder);
  test_strides(folder);
  test_alone(folder);
  test_artifacts_refused(folder);
  test_arguments_refused(folder);
  test_runs_refused(folder);
  test_wrapper_refuses(folder);
  test_threads(folder);
  test_open_and_close(folder, std::atoi(argv[2]));
  return exit_code();
}
