// How many contexts an engine makes: a run reuses the context of an earlier one, unless that failed.
#include <string>
#include <vector>

#include "check.h"
#include "engine.h"
#include "error.h"
#include "known_backend.h"

using namespace r2mrf_internal;

namespace {

int contexts_of_three_runs(const std::string &artifact, bool failing) {
  const int before = known_contexts;
  Engine engine(artifact, 0);
  const std::vector<std::uint8_t> pixels(8 * 8 * 3, 99);
  for (int i = 0; i < 3; ++i) {
    const auto run = [&] { engine.run({pixels.data(), 8, 8, 24, false}, [](std::uint32_t, const float *) {}); };
    if (failing) {
      CHECK_THROWS(ArtifactError, run(), "not finite");
    } else {
      run();
    }
  }
  return known_contexts - before;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  const std::string folder = std::string(argv[1]) + "/";
  CHECK(contexts_of_three_runs(folder + "weighted.onnx", false) == 1);
  CHECK(contexts_of_three_runs(folder + "not_finite.onnx", true) == 3);
  return exit_code();
}
