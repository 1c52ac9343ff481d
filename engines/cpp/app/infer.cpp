// r2mrf-infer: photographs in, maps and overlays out; with --bench, how long an inference takes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "picture.h"
#include "summary.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char *kUsage =
    "usage: r2mrf-infer ARTIFACT IMAGE... [-o FOLDER] [--no-overlays] [--threads N]\n"
    "       r2mrf-infer ARTIFACT --bench [--duration S] [--iterations N] [--warmUp MS] [--threads N]\n"
    "\n"
    "Writes NAME_map.png (white = in focus) and NAME_overlay.png for every image, at its size.\n"
    "--bench measures by trtexec's protocol, on noise of the network's size, or of 320x320 where that is free.\n";

struct Options {
  std::string artifact;
  std::vector<std::string> images;
  std::string output = ".";
  bool overlays = true;
  bool bench = false;
  double duration = 3;    // seconds
  double iterations = 10;
  double warm_up = 200;   // milliseconds
  std::uint32_t threads = 0;
};

struct WrongUse : std::runtime_error {
  using std::runtime_error::runtime_error;
};

double number(const std::string &option, const std::string &text) {
  std::size_t used = 0;
  double value = -1;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception &) {
    used = 0;
  }
  if (used != text.size() || used == 0 || !(value >= 0 && value <= 1e6)) {
    throw WrongUse(option + " wants a number of 0 to 1000000, not \"" + text + '"');
  }
  return value;
}

Options parse(const std::vector<std::string> &arguments) {
  Options options;
  std::size_t i = 0;
  const auto next = [&]() -> const std::string & {
    if (i + 1 == arguments.size()) throw WrongUse(arguments[i] + " wants a value");
    return arguments[++i];
  };
  for (; i < arguments.size(); ++i) {
    const std::string &a = arguments[i];
    if (a == "-o") options.output = next();
    else if (a == "--no-overlays") options.overlays = false;
    else if (a == "--bench") options.bench = true;
    else if (a == "--duration") options.duration = number(a, next());
    else if (a == "--iterations") options.iterations = number(a, next());
    else if (a == "--warmUp") options.warm_up = number(a, next());
    else if (a == "--threads") options.threads = static_cast<std::uint32_t>(number(a, next()));
    else if (a.size() > 1 && a[0] == '-') throw WrongUse("no option " + a);
    else if (options.artifact.empty()) options.artifact = a;
    else options.images.push_back(a);
  }
  if (options.artifact.empty() || options.images.empty() != options.bench) {
    throw WrongUse(options.artifact.empty() ? "no artifact given" : "give images, or --bench without images");
  }
  return options;
}

// What an image's files are called: its stem, with as much more of its path as tells it from the others.
std::string name_of(const std::filesystem::path &file, const std::vector<std::string> &all) {
  const auto alike = [&](auto part) {
    return std::count_if(all.begin(), all.end(), [&](const std::string &other) { return part(other) == part(file); });
  };
  if (alike([](const std::filesystem::path &p) { return p.stem(); }) == 1) return file.stem().string();
  if (alike([](const std::filesystem::path &p) { return p.filename(); }) == 1) return file.filename().string();
  std::string name;
  for (const auto &part : std::filesystem::absolute(file).relative_path()) name += (name.empty() ? "" : "_") + part.string();
  return name;
}

// Maps and overlays of every image that can be read; the number of those that cannot.
int predict(const r2mrf::Engine &engine, const Options &options) {
  int failures = 0;
  std::filesystem::create_directories(options.output);
  for (const std::string &file : options.images) {
    try {
      const Picture image = read_picture(file);
      const auto map = engine.run(image.view());
      std::vector<std::uint8_t> bytes;
      bytes.reserve(map.values.size());
      for (const float v : map.values) bytes.push_back(static_cast<std::uint8_t>(std::nearbyint(v * 255.0F)));
      const auto name = (std::filesystem::path(options.output) / name_of(file, options.images)).string();
      write_png(name + "_map.png", image.width, image.height, 1, bytes.data());
      if (options.overlays) {
        const Picture shown = overlay(image, map);
        write_png(name + "_overlay.png", shown.width, shown.height, 3, shown.pixels.data());
      }
      std::printf("%s_map.png\n", name.c_str());
    } catch (const std::exception &e) {
      std::fprintf(stderr, "%s\n", e.what());
      ++failures;
    }
  }
  return failures;
}

// MiB of memory that this process had at most, by Linux's account; 0 elsewhere.
double peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

void bench(const r2mrf::Engine &engine, const Options &options) {
  const auto fixed = engine.input_size();
  Picture image{fixed.width ? fixed.width : 320, fixed.height ? fixed.height : 320, {}};
  image.pixels.resize(std::size_t{image.width} * image.height * 3);
  std::uint32_t state = 1;
  for (auto &value : image.pixels) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<std::uint8_t>(state >> 24U);
  }
  const auto seconds = [](Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto warming = Clock::now();
  do {
    static_cast<void>(engine.run(image.view()));
  } while (seconds(warming) < options.warm_up / 1e3);
  std::vector<r2mrf_times> times;
  double spent = 0;
  while (spent < options.duration || static_cast<double>(times.size()) < options.iterations) {
    const auto start = Clock::now();
    static_cast<void>(engine.run(image.view()));
    times.push_back(r2mrf::last_times());
    spent += seconds(start);
  }
  const std::string device = engine.device();
  std::printf("%s\n%zu inferences\n%sPeak memory: %.1f MiB\n", device.c_str(), times.size(),
              summary(times, spent, device.find("CPU") == std::string::npos).c_str(), peak_memory());
}

}  // namespace

int main(int argc, char **argv) {
  try {
    const Options options = parse({argv + 1, argv + argc});
    const r2mrf::Engine engine(options.artifact, options.threads);
    if (!options.bench) return predict(engine, options) == 0 ? 0 : 1;
    bench(engine, options);
    return 0;
  } catch (const WrongUse &e) {
    std::fprintf(stderr, "%s\n%s", e.what(), kUsage);
    return 2;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
