// The parsers that read untrusted bytes: they may refuse any input, and must not crash on any.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "../app/exif.h"
#include "error.h"
#include "manifest.h"
#include "plan_header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  using namespace r2mrf_internal;
  try {
    const auto header = parse_plan_header(data, size < kPlanHeaderLength ? size : kPlanHeaderLength, size, "fuzzed");
    check_plan_version(header, "10.1.0", true, "fuzzed");
  } catch (const ArtifactError &) {  // refusing is allowed
  }
  try {
    parse_contract({reinterpret_cast<const char *>(data), size}, "fuzzed");
  } catch (const ArtifactError &) {
  }
  try {
    const auto manifest = parse_manifest({reinterpret_cast<const char *>(data), size}, "fuzzed");
    check_plan_manifest({"tensorrt", "1", {"8.6"}}, manifest, "fuzzed");
  } catch (const ArtifactError &) {
  }
  const unsigned orientation = exif_orientation(data, size);
  if (orientation < 1 || orientation > 8) std::abort();
  return 0;
}
