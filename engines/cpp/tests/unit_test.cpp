// SHA-256, half precision, the plan's header, the manifest and resizing, against what is known of them.
#include <cmath>
#include <cstring>

#include "check.h"
#include "error.h"
#include "half.h"
#include "manifest.h"
#include "plan_header.h"
#include "resize.h"
#include "sha256.h"

using namespace r2mrf_internal;

namespace {

void test_exit_code() {
  CHECK(exit_code(0) == 0);
  CHECK(exit_code(256) == 1);
}

std::string digest(const std::string &text) {
  Sha256 sha;
  sha.update(reinterpret_cast<const std::uint8_t *>(text.data()), text.size());
  return sha.hex();
}

void test_sha256() {  // the examples of FIPS 180-4, and a length that needs a second block of padding
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

void test_half() {
  for (std::uint32_t h = 0; h < 0x7c00U; ++h) {  // every finite value survives, and so does its negative
    CHECK(half_from(float_from(static_cast<std::uint16_t>(h))) == h);
    CHECK(half_from(-float_from(static_cast<std::uint16_t>(h))) == (h | 0x8000U));
  }
  CHECK(half_from(2049.0F) == half_from(2048.0F));  // halves go to even
  CHECK(half_from(2051.0F) == half_from(2052.0F));
  CHECK(half_from(65519.0F) == 0x7bffU);
  CHECK(half_from(65520.0F) == 0x7c00U);
  CHECK(std::isnan(float_from(half_from(NAN))));
}

std::vector<std::uint8_t> rtx_plan() {
  std::vector<std::uint8_t> plan(80);
  std::memcpy(plan.data(), "vtrt", 4);
  plan[16] = 80;
  plan[24] = 1;
  plan[25] = 7;
  plan[32] = 0b1001;
  return plan;
}

PlanHeader header(const std::vector<std::uint8_t> &plan) {
  return parse_plan_header(plan.data(), std::min(plan.size(), kPlanHeaderLength), plan.size(), "x.plan");
}

void test_plan_header() {
  auto plan = rtx_plan();
  CHECK(header(plan).flavour == "tensorrt_rtx");
  CHECK(header(plan).version == "1.7.0.0");
  CHECK((header(plan).compute_capabilities == std::vector<std::string>{"7.5", "8.9"}));
  plan.pop_back();
  CHECK_THROWS(ArtifactError, header(plan), "says 80 bytes, the file has 79");
  plan.resize(20);
  CHECK_THROWS(ArtifactError, header(plan), "truncated after 20 bytes");
  CHECK_THROWS(ArtifactError, header({}), "not a TensorRT plan");
  plan = rtx_plan();
  plan[5] = 1;
  CHECK_THROWS(ArtifactError, header(plan), "holds 256 where a plan has 0");
  plan = rtx_plan();
  plan[0] = 'f';
  CHECK(header(plan).flavour == "tensorrt");
}

void test_plan_checks() {
  const PlanHeader plan{"tensorrt_rtx", "1.7.1.116", {"8.6", "8.9"}};
  Manifest manifest;
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "does not say what it was built for");
  manifest.target = Target{"tensorrt_rtx", "1.7.1.116", {"8.6", "8.9"}, false};
  check_plan_manifest(plan, manifest, "p");
  manifest.target->runtime = "tensorrt";
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "says runtime tensorrt, the plan itself tensorrt_rtx");
  manifest.target = Target{"tensorrt_rtx", "1.7.0.9", {"8.6", "8.9"}, false};
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "says version 1.7.0.9");
  manifest.target = Target{"tensorrt_rtx", "1.7.1.116", {"8.6"}, false};
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "the plan itself 8.6, 8.9");
  check_plan_version(plan, "1.7.1", false, "p");
  check_plan_version(plan, "1.10.0", true, "p");
  CHECK_THROWS(ArtifactError, check_plan_version(plan, "1.10.0", false, "p"), "but 1.10.0 is installed");
  CHECK_THROWS(ArtifactError, check_plan_version(plan, "1.6.9", true, "p"), "built by tensorrt_rtx 1.7.1.116");
  CHECK_THROWS(ArtifactError, check_plan_version(plan, "2.7.1", true, "p"), "is installed");
}

const std::string kManifest = R"({"format": "r2mrf-artifact/1", "kind": "onnx", "sha256": "00", "inputs":
  [{"name": "image", "dtype": "uint8", "shape": ["n", "h", "w", 3], "layout": "NHWC"}], "outputs":
  [{"name": "map", "dtype": "float32", "shape": ["n", 1, "h", "w"], "layout": null}], "profiles":
  {"image": {"min": [1, 32, 32, 3], "opt": [1, 64, 64, 3], "max": [2, 128, 96, 3]}}, "preprocess":
  {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, "precision": "int8", "target": null, "later": {}})";

std::string with(const std::string &from, const std::string &to) {
  std::string text = kManifest;
  text.replace(text.find(from), from.size(), to);
  return text;
}

void test_manifest() {
  const Manifest manifest = parse_manifest(kManifest, "m");
  CHECK((manifest.inputs.at(0).shape == Shape{kFree, kFree, kFree, 3}));
  CHECK((manifest.largest.at("image") == Shape{2, 128, 96, 3}));
  CHECK(manifest.precision == "int8" && manifest.preprocess->std[2] == 0.25F);
  CHECK_THROWS(ArtifactError, parse_manifest("{", "m"), "m is not a manifest");
  CHECK_THROWS(ArtifactError, parse_manifest("[]", "m"), "no JSON object");
  CHECK_THROWS(ArtifactError, parse_manifest(with("artifact/1", "artifact/2"), "m"), "known is r2mrf-artifact/1");
  CHECK_THROWS(ArtifactError, parse_manifest(with("\"sha256\"", "\"md5\""), "m"), "sha256");
  CHECK_THROWS(ArtifactError, parse_manifest(with("NHWC", "HWC"), "m"), "no layout");
  for (const char *size : {"0", "-3", "1.5", "true", "18446744073709551615", "null"}) {
    CHECK_THROWS(ArtifactError, parse_manifest(with("\"w\", 3", std::string("\"w\", ") + size), "m"), "m is not");
  }
}

void test_agreement() {
  const TensorSpec said{"map", "float32", {1, 1, kFree, 8}, ""};
  check_agreement({{"map", "float32", {1, 1, 5, 8}, ""}}, {said}, "m");
  CHECK_THROWS(ArtifactError, check_agreement({{"map", "float16", {1, 1, 5, 8}, ""}}, {said}, "m"), "float16");
  CHECK_THROWS(ArtifactError, check_agreement({{"map", "float32", {1, 1, 5, 9}, ""}}, {said}, "m"), "its manifest says");
  CHECK_THROWS(ArtifactError, check_agreement({{"out", "float32", {1, 1, 5, 8}, ""}}, {said}, "m"), "m has out");
  CHECK_THROWS(ArtifactError, check_agreement({}, {said}, "m"), "its manifest says map");
}

void test_resize() {
  // a flat image stays flat at any size, rows with gaps and swapped colours included
  for (const std::uint32_t size : {1U, 2U, 31U, 64U, 333U}) {
    std::vector<std::uint8_t> image(64 * 200, 99);
    for (std::size_t y = 0; y < 64; ++y) {
      for (std::size_t x = 0; x < 64; ++x) {
        image[y * 200 + 3 * x] = 10;
        image[y * 200 + 3 * x + 1] = 20;
        image[y * 200 + 3 * x + 2] = 30;
      }
    }
    std::vector<std::uint8_t> out(std::size_t{size} * size * 3);
    resize_rgb({image.data(), 64, 64, 200, true}, size, size, out.data());
    bool flat = true;
    for (std::size_t i = 0; i < out.size(); i += 3) flat &= out[i] == 30 && out[i + 1] == 20 && out[i + 2] == 10;
    CHECK(flat);
  }
  // the middle of two samples, twice as many: a quarter, by the triangle's weights
  const float two[] = {0, 1};
  std::vector<float> row;
  resize_map(two, 2, 1, 4, 1, [&](std::uint32_t, const float *made) { row.assign(made, made + 4); });
  CHECK((row == std::vector<float>{0.0F, 0.25F, 0.75F, 1.0F}));
}

}  // namespace

int main() {
  test_exit_code();
  test_sha256();
  test_half();
  test_plan_header();
  test_plan_checks();
  test_manifest();
  test_agreement();
  test_resize();
  return exit_code();
}
