// r2mrf-infer writes maps and overlays of photographs, or with --bench times the inference.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "picture.h"
#include "summary.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char *kUsage =
    "usage: r2mrf-infer ARTIFACT IMAGE... [-o FOLDER] [--no-overlays] [--threads N]\n"
    "       r2mrf-infer ARTIFACT --bench [--duration S] [--iterations N] [--warmUp MS] [--threads N]\n"
    "\n"
    "Writes NAME_map.png (white = in focus) and NAME_overlay.png for each image, at the image's size.\n"
    "\n"
    "  -o FOLDER        write the files to FOLDER (default: the current folder)\n"
    "  --no-overlays    write only the maps\n"
    "  --bench          time inferences by trtexec's protocol, on noise of the network's size (320x320 if free)\n"
    "  --duration S     measure for at least S seconds (default: 3)\n"
    "  --iterations N   measure at least N inferences (default: 10)\n"
    "  --warmUp MS      warm up for MS milliseconds before measuring (default: 200)\n"
    "  --threads N      CPU threads for one inference; 0 lets the backend choose (default: 0)\n"
    "  --version        print the version and the backends of this build\n"
    "\n"
    "Exit status: 0 for success, 2 if the command, the artifact or an image cannot be used, 1 for an internal error.\n";

constexpr double kMostThreads = 1024;
constexpr double kMost = 1e6;

struct Options {
  std::string artifact;
  std::vector<std::string> images;
  std::string output = ".";
  bool overlays = true;
  bool bench = false;
  double duration = 3;    // seconds
  std::uint32_t iterations = 10;
  double warm_up = 200;   // milliseconds
  std::uint32_t threads = 0;
};

struct WrongUse : std::runtime_error {
  using std::runtime_error::runtime_error;
};

double number(const std::string &option, const std::string &text, double most = kMost, bool whole = false) {
  std::size_t used = 0;
  double value = -1;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception &) {
    used = 0;
  }
  if (used != text.size() || used == 0 || !(value >= 0 && value <= most) || (whole && value != std::nearbyint(value))) {
    throw WrongUse(option + " takes a " + (whole ? "whole " : "") + "number from 0 to " +
                   std::to_string(static_cast<long>(most)) + ", not \"" + text + '"');
  }
  return value;
}

std::uint32_t whole_number(const std::string &option, const std::string &text, double most = kMost) {
  return static_cast<std::uint32_t>(number(option, text, most, true));
}

Options parse(const std::vector<std::string> &arguments) {
  Options options;
  std::size_t i = 0;
  const auto next = [&]() -> const std::string & {
    if (i + 1 == arguments.size()) throw WrongUse(arguments[i] + " needs a value");
    return arguments[++i];
  };
  for (; i < arguments.size(); ++i) {
    const std::string &a = arguments[i];
    if (a == "-o") options.output = next();
    else if (a == "--no-overlays") options.overlays = false;
    else if (a == "--bench") options.bench = true;
    else if (a == "--duration") options.duration = number(a, next());
    else if (a == "--iterations") options.iterations = whole_number(a, next());
    else if (a == "--warmUp") options.warm_up = number(a, next());
    else if (a == "--threads") options.threads = whole_number(a, next(), kMostThreads);
    else if (a.size() > 1 && a[0] == '-') throw WrongUse("unknown option " + a);
    else if (options.artifact.empty()) options.artifact = a;
    else options.images.push_back(a);
  }
  if (options.artifact.empty() || options.images.empty() != options.bench) {
    throw WrongUse(options.artifact.empty() ? "no artifact given" : "give images, or --bench without images");
  }
  return options;
}

// The name of an image's results: its stem, and as much of its path as distinguishes it from the other images.
std::string name_of(const std::filesystem::path &file, const std::vector<std::string> &all) {
  std::multiset<std::filesystem::path> alike;  // file names with the same stem
  for (const std::filesystem::path other : all) {
    if (other.stem() == file.stem()) alike.insert(other.filename());
  }
  if (alike.size() == 1) return file.stem().string();
  if (alike.size() == std::set(alike.begin(), alike.end()).size()) return file.filename().string();
  std::string name;
  for (const auto &part : std::filesystem::absolute(file).relative_path()) name += (name.empty() ? "" : "_") + part.string();
  return name;
}

void write_results(const Picture &image, const r2mrf::Map<float> &map, const std::string &name, bool overlays) {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(map.values.size());
  for (const float v : map.values) bytes.push_back(static_cast<std::uint8_t>(std::nearbyint(v * 255.0F)));
  write_png(name + "_map.png", image.width, image.height, 1, bytes.data());
  if (overlays) {
    const Picture shown = overlay(image, map);
    write_png(name + "_overlay.png", shown.width, shown.height, 3, shown.pixels.data());
  }
  std::printf("%s_map.png\n", name.c_str());
}

// Writes maps and overlays of all images that can be read. Returns whether all could.
bool predict(const r2mrf::Engine &engine, const Options &options) {
  bool all = true;
  for (const std::string &file : options.images) {
    Picture image;
    try {
      image = read_picture(file);
    } catch (const FileError &e) {
      std::fprintf(stderr, "%s\n", e.what());
      all = false;
      continue;
    }
    const auto map = engine.run(image.view());
    std::error_code why;
    std::filesystem::create_directories(options.output, why);  // if this fails, writing reports it
    const auto name = std::filesystem::path(options.output) / name_of(file, options.images);
    write_results(image, map, name.string(), options.overlays);
  }
  return all;
}

// This process's peak memory in MiB; 0 on systems other than Linux.
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
  while (spent < options.duration || times.size() < options.iterations) {
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
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);  // an arena for each of OpenVINO's threads would cost memory and save no time
#endif
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const auto given = [&](const char *a) { return std::count(arguments.begin(), arguments.end(), a) != 0; };
    if (given("-h") || given("--help")) {
      std::fputs(kUsage, stdout);
      return 0;
    }
    if (given("--version")) {
      std::printf("r2mrf-infer %s (backends: %s)\n", r2mrf_version(), *r2mrf_backends() ? r2mrf_backends() : "none");
      return 0;
    }
    const Options options = parse(arguments);
    const r2mrf::Engine engine(options.artifact, options.threads);
    if (!options.bench) return predict(engine, options) ? 0 : 2;
    bench(engine, options);
    return 0;
  } catch (const WrongUse &e) {
    std::fprintf(stderr, "%s (see r2mrf-infer --help)\n", e.what());
    return 2;
  } catch (const FileError &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  } catch (const r2mrf::Error &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return e.status() == R2MRF_INTERNAL ? 1 : 2;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
