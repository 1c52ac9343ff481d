// r2mrf-infer writes maps and overlays of photographs, or with --bench times the inference.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "failure.h"
#include "message.h"
#include "output.h"
#include "picture.h"
#include "sources.h"
#include "summary.h"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using r2mrf_internal::print_line;

constexpr const char *kOverlay = "_overlay.png";  // the longest suffix of what is written

constexpr const char *kUsage =
    "usage: r2mrf-infer ARTIFACT IMAGE|FOLDER... [-o FOLDER] [--no-overlays] [--overlay-side N] [--threads N]\n"
    "       r2mrf-infer ARTIFACT --bench [--duration S] [--iterations N] [--warmUp MS] [--threads N]\n"
    "\n"
    "Writes NAME_map.png (white = in focus), at the image's size, and NAME_overlay.png for each image. Of a folder, its\n"
    "images are taken, without those in subfolders. If images have the same name, more of their paths goes into NAME.\n"
    "\n"
    "  -o, --output FOLDER\n"
    "                   write the files to FOLDER (default: the current folder). What is there and is not a regular file is\n"
    "                   not replaced\n"
    "  --no-overlays    write only the maps\n"
    "  --overlay-side N reduce overlays to N pixels on their longest side (default: 2048)\n"
    "  --bench          time inferences by trtexec's protocol, on noise of the network's size (320x320 if free)\n"
    "  --duration S     measure for at least S seconds (default: 3)\n"
    "  --iterations N   measure at least N inferences (default: 10)\n"
    "  --warmUp MS      warm up for MS milliseconds before measuring (default: 200)\n"
    "  --threads N      CPU threads for one inference; 0 lets the backend choose (default: 0)\n"
    "  --version        print the version and the backends of this build\n"
    "\n"
    "Exit status: 0 for success, 2 if the command, the artifact or an image cannot be used, 1 for an internal error. An image\n"
    "that cannot be used is reported, and the others are done.\n";

constexpr double kMostThreads = 1024;
constexpr double kMost = 1e6;

struct Options {
  std::string artifact;
  std::vector<std::string> images;
  std::string output = ".";
  bool overlays = true;
  std::uint32_t overlay_side = 2048;
  bool bench = false;
  double duration = 3;    // seconds
  std::uint32_t iterations = 10;
  double warm_up = 200;   // milliseconds
  std::uint32_t threads = 0;
};

struct WrongUse : std::runtime_error {
  using std::runtime_error::runtime_error;
};

double number(const std::string &option, const std::string &text, double most = kMost, bool whole = false, long least = 0) {
  std::size_t used = 0;
  double value = -1;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception &) {
    used = 0;
  }
  const bool in_range = value >= static_cast<double>(least) && value <= most;
  if (used != text.size() || used == 0 || !in_range || (whole && value != std::nearbyint(value))) {
    throw WrongUse(option + " takes a " + (whole ? "whole " : "") + "number from " + std::to_string(least) + " to " +
                   std::to_string(static_cast<long>(most)) + ", not \"" + text + '"');
  }
  return value;
}

std::uint32_t whole_number(const std::string &option, const std::string &text, double most = kMost, long least = 0) {
  return static_cast<std::uint32_t>(number(option, text, most, true, least));
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
    if (a == "-o" || a == "--output") options.output = next();
    else if (a == "--no-overlays") options.overlays = false;
    else if (a == "--overlay-side") options.overlay_side = whole_number(a, next(), kMost, 1);
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

enum Exit { kSuccess = 0, kInternal = 1, kUnusable = 2 };

// Does the work for one source or one command. What goes wrong is printed as one line.
template <typename Work>
Exit reported(Work work) {
  try {
    work();
    return kSuccess;
  } catch (const WrongUse &e) {
    print_line(stderr, std::string(e.what()) + " (see r2mrf-infer --help)");
  } catch (const FileError &e) {
    print_line(stderr, e.what());
  } catch (const r2mrf::Error &e) {
    print_line(stderr, e.what());
    if (e.status() == R2MRF_INTERNAL) return kInternal;
  } catch (const std::bad_alloc &) {
    print_line(stderr, "there is not enough memory");
    return kInternal;
  } catch (const std::exception &e) {
    print_line(stderr, e.what());
    return kInternal;
  }
  return kUnusable;
}

// What a run ends with: the gravest of what its parts ended with.
void add(Exit &all, Exit one) {
  if (one == kInternal || all == kSuccess) all = one;
}

struct Job {
  fs::path source;
  std::string name;  // of what is made from it

  [[nodiscard]] std::string map() const { return name + "_map.png"; }
  [[nodiscard]] std::string overlay() const { return name + kOverlay; }
};

// What to do for every photograph that was given, once for each.
std::vector<Job> planned(const Options &options, Exit &all) {
  std::vector<fs::path> sources;
  std::set<fs::path> known;
  for (const std::string &given : options.images) {
    add(all, reported([&] {
      for (const fs::path &source : photographs_in(given)) {
        if (known.insert(fs::absolute(source).lexically_normal()).second) sources.push_back(source);
      }
    }));
  }
  const auto names = names_of(sources, std::strlen(kOverlay));
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < sources.size(); ++i) jobs.push_back({sources[i], names[i]});
  return jobs;
}

// Throws WrongUse if a photograph would be replaced by what is made from one.
void check_no_source_is_replaced(const std::vector<Job> &jobs, const Options &options) {
  std::error_code unknown;
  std::map<fs::path, fs::path> sources;
  for (const Job &job : jobs) sources[fs::weakly_canonical(job.source, unknown)] = job.source;
  const fs::path folder = fs::weakly_canonical(options.output, unknown);
  for (const Job &job : jobs) {
    for (const std::string &file : {job.map(), job.overlay()}) {
      const auto victim = sources.find(folder / file);
      if (victim == sources.end() || (file == job.overlay() && !options.overlays)) continue;
      throw WrongUse("what is made from " + job.source.string() + " would replace " + victim->second.string() +
                     ": choose another folder with -o");
    }
  }
}

// Writes maps and overlays of all photographs that can be read.
Exit predict(const r2mrf::Engine &engine, const Options &options) {
  Exit all = kSuccess;
  const auto jobs = planned(options, all);
  check_no_source_is_replaced(jobs, options);
  std::size_t done = 0;
  for (const Job &job : jobs) {
    const Exit one = reported([&] {
      Picture image = read_picture(job.source);
      auto map = engine.run_u8(image.view());
      write_png(options.output, job.map(), map.width, map.height, 1, map.values.data());
      if (options.overlays) {
        reduce(image, map, options.overlay_side);
        draw_overlay(image, map);
        write_png(options.output, job.overlay(), image.width, image.height, 3, image.pixels.data());
      }
      print_line(stdout, (fs::path(options.output) / job.map()).string());
    });
    done += one == kSuccess;
    add(all, one);
  }
  if (all != kSuccess && jobs.size() > 1) {
    print_line(stderr, std::to_string(done) + " of " + std::to_string(jobs.size()) + " images were done");
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
  print_line(stdout, std::to_string(image.height) + 'x' + std::to_string(image.width) + "x3, " + device);
  std::printf("%s\n%sPeak memory: %.1f MiB\n", r2mrf_internal::counted(times.size(), "inference").c_str(),
              summary(times, spent, device.find("CPU") == std::string::npos).c_str(), peak_memory());
}

Exit run(const std::vector<std::string> &arguments) {
  const auto given = [&](const char *a) { return std::count(arguments.begin(), arguments.end(), a) != 0; };
  if (given("-h") || given("--help")) {
    std::fputs(kUsage, stdout);
    return kSuccess;
  }
  if (given("--version")) {
    std::printf("r2mrf-infer %s (backends: %s)\n", r2mrf_version(), *r2mrf_backends() ? r2mrf_backends() : "none");
    return kSuccess;
  }
  const Options options = parse(arguments);
  const r2mrf::Engine engine(options.artifact, options.threads);
  if (!options.bench) return predict(engine, options);
  bench(engine, options);
  return kSuccess;
}

}  // namespace

int main(int argc, char **argv) {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 1);  // an arena for each of OpenVINO's threads would cost memory and save no time
#endif
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is an error like a full disk
  Exit all = kSuccess;
  add(all, reported([&] { all = run(std::vector<std::string>(argv + 1, argv + argc)); }));
  add(all, reported([] {
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
    throw FileError("cannot write to the standard output: " + why_not_written(errno));
  }));
  return all;
}
