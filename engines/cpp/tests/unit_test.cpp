// SHA-256, half precision, plan headers, manifests, messages, EXIF and resizing, against known results.
#include <cmath>
#include <cstring>

#include "../app/exif.h"
#include "check.h"
#include "error.h"
#include "fitting.h"
#include "half.h"
#include "manifest.h"
#include "message.h"
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

void test_sha256() {  // the examples of FIPS 180-4, one of which needs a second block for its padding
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

void test_half() {
  for (std::uint32_t h = 0; h < 0x7c00U; ++h) {  // every finite value and its negative survive the round trip
    CHECK(half_from(float_from(static_cast<std::uint16_t>(h))) == h);
    CHECK(half_from(-float_from(static_cast<std::uint16_t>(h))) == (h | 0x8000U));
  }
  CHECK(half_from(2049.0F) == half_from(2048.0F));  // ties to even
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
  CHECK_THROWS(ArtifactError, header(plan), "says 80 bytes, but the file has 79");
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
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"),
               "its manifest says runtime tensorrt, but the plan itself says tensorrt_rtx");
  manifest.target = Target{"tensorrt_rtx", "1.7.0.9", {"8.6", "8.9"}, false};
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "says version 1.7.0.9");
  manifest.target = Target{"tensorrt_rtx", "1.7.1.116", {"8.6"}, false};
  CHECK_THROWS(ArtifactError, check_plan_manifest(plan, manifest, "p"), "the plan itself says 8.6, 8.9");
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
  CHECK(parse_contract(with("\"sha256\": \"00\", ", ""), "c").inputs.at(0).name == "image");
  CHECK_THROWS(ArtifactError, parse_contract("{", "c"), "c: the contract inside it cannot be used");
  CHECK_THROWS(ArtifactError, parse_manifest("[]", "m"), "not a JSON object");
  CHECK_THROWS(ArtifactError, parse_manifest(with("artifact/1", "artifact/2"), "m"), "this library reads r2mrf-artifact/1");
  CHECK_THROWS(ArtifactError, parse_manifest(with("\"sha256\"", "\"md5\""), "m"), "sha256");
  CHECK_THROWS(ArtifactError, parse_manifest(with("NHWC", "HWC"), "m"), "unknown layout \"HWC\"");
  for (const char *size : {"0", "-3", "1.5", "1e30", "true", "18446744073709551615", "null"}) {
    CHECK_THROWS(ArtifactError, parse_manifest(with("\"w\", 3", std::string("\"w\", ") + size), "m"), "m is not");
  }
}

void test_fit() {
  const Manifest older = parse_manifest(kManifest, "m");
  CHECK(!older.preprocess->letterbox && older.preprocess->longest_side == 640);
  CHECK((older.smallest.at("image") == Shape{1, 32, 32, 3}));
  const std::string said = "\"std\": [0.25, 0.25, 0.25]";
  const Manifest newer = parse_manifest(with(said, said + R"(, "fit": "letterbox", "longest_side": 320)"), "m");
  CHECK(newer.preprocess->letterbox && newer.preprocess->longest_side == 320);
  CHECK_THROWS(ArtifactError, parse_manifest(with(said, said + R"(, "fit": "crop")"), "m"), "unknown preprocess.fit \"crop\"");
  CHECK_THROWS(ArtifactError, parse_manifest(with(said, said + R"(, "fit": null)"), "m"), "m is not");
  for (const char *side : {"0", "-1", "1.5", "1e30", "true", "null", "\"x\""}) {
    CHECK_THROWS(ArtifactError, parse_manifest(with(said, said + ", \"longest_side\": " + side), "m"), "m is not");
  }
}

// An input of this height and width, -1 if free, with everything else as fit and profile say.
Manifest fitted_to(std::int64_t height, std::int64_t width, bool letterbox, std::int64_t longest = 640) {
  Manifest manifest;
  manifest.inputs = {{"image", "uint8", {1, height, width, 3}, "NHWC"}};
  manifest.preprocess = Preprocess{{0, 0, 0}, {1, 1, 1}, longest, letterbox};
  return manifest;
}

void test_fitting() {
  const auto check = [](const Size &photograph, const Manifest &manifest, const Size &content, const Size &canvas) {
    const Fitting found = fitting_of(photograph, manifest);
    CHECK(found.content == content && found.canvas == canvas);
  };
  check({3000, 4000}, fitted_to(320, 320, true), {240, 320}, {320, 320});
  check({3000, 4000}, fitted_to(320, 320, false), {320, 320}, {320, 320});
  check({100, 50}, fitted_to(320, 320, true), {100, 50}, {320, 320});  // never enlarged
  check({1, 4000}, fitted_to(320, 320, true), {1, 320}, {320, 320});
  check({3000, 4000}, fitted_to(kFree, kFree, false), {480, 640}, {480, 640});
  check({3000, 4000}, fitted_to(kFree, kFree, false, 320), {240, 320}, {240, 320});
  check({1001, 2000}, fitted_to(kFree, kFree, true, 1000), {501, 1000}, {501, 1000});  // 500.5 is rounded up, not to even
  check({10, 20}, fitted_to(kFree, kFree, false), {10, 20}, {32, 32});
  check({3000, 4000}, fitted_to(kFree, 320, false), {240, 320}, {240, 320});
  Manifest profiled = fitted_to(kFree, kFree, true);
  profiled.smallest["image"] = {1, 64, 96, 3};
  profiled.largest["image"] = {1, 128, 1280, 3};
  check({3000, 4000}, profiled, {128, 171}, {128, 171});
  check({50, 2000}, profiled, {16, 640}, {64, 640});
  Manifest tensor = fitted_to(1, 1, true);
  tensor.inputs = {{"tensor", "float32", {1, 3, 48, 64}, "NCHW"}};
  check({96, 96}, tensor, {48, 48}, {48, 64});
}

// A photograph of one row, 0 10 20, in the middle of larger canvases; its map is cut out again.
void test_mirroring() {
  const std::uint8_t pixels[] = {0, 0, 0, 10, 10, 10, 20, 20, 20};
  const auto placed = [&](std::uint32_t width) {
    std::vector<std::uint8_t> canvas(std::size_t{width} * 2 * 3);
    place({pixels, 3, 1, 9, false}, {{1, 3}, {2, width}}, canvas.data());
    std::vector<int> row;
    for (std::size_t x = 0; x < width; ++x) {
      row.push_back(canvas[3 * x]);
      CHECK(canvas[3 * (x + width)] == canvas[3 * x]);  // the second row mirrors the first
    }
    return row;
  };
  CHECK((placed(4) == std::vector<int>{0, 10, 20, 20}));  // one more at the end if it cannot be in the middle
  CHECK((placed(7) == std::vector<int>{10, 0, 0, 10, 20, 20, 10}));
  CHECK((placed(17) == std::vector<int>{0, 0, 10, 20, 20, 10, 0, 0, 10, 20, 20, 10, 0, 0, 10, 20, 20}));
  const std::vector<float> map{0, 1, 2, 3, 4, 5, 6, 7};
  CHECK((cut(map.data(), {2, 4}, {{1, 2}, {2, 4}}) == std::vector<float>{1, 2}));
  CHECK((cut(map.data(), {2, 4}, {{1, 1}, {2, 4}}) == std::vector<float>{1}));
  CHECK((cut(map.data(), {1, 2}, {{2, 2}, {2, 4}}) == std::vector<float>{0.25F, 0.75F, 0.25F, 0.75F}));  // resized first
}

// A manifest and a contract have the same limits.
void test_limits() {
  const auto refused = [](const std::string &text, const std::string &part) {
    CHECK_THROWS(ArtifactError, parse_manifest(text, "m"), part);
    CHECK_THROWS(ArtifactError, parse_contract(text, "m"), part);
  };
  refused(std::string((std::size_t{64} << 20U) + 1, ' '), "too large");
  const std::string opened(100000, '[');
  const std::string closed = opened + std::string(100000, ']');
  refused(opened, "nested too deeply");
  refused(closed, "nested too deeply");
  refused(with("\"w\", 3", "\"w\", " + closed), "nested too deeply");  // a dimension, which the message would quote
  refused(with("\"later\": {}", "\"later\": " + closed), "nested too deeply");  // a field that is ignored
  parse_manifest(with("\"later\": {}", "\"later\": " + std::string(50, '[') + std::string(50, ']')), "m");
}

void test_normalisation() {
  const auto refused = [](const std::string &field, const std::string &values, const std::string &part) {
    const std::string said = field == "mean" ? "[0.5, 0.5, 0.5]" : "[0.25, 0.25, 0.25]";
    CHECK_THROWS(ArtifactError, parse_manifest(with(said, values), "m"), part);
  };
  refused("std", "[0.25, 0, 0.25]", "std must be greater than 0");
  refused("std", "[0.25, -1, 0.25]", "std must be greater than 0");
  refused("std", "[0.25, 1e-60, 0.25]", "std must be greater than 0");  // 0 in single precision
  refused("std", "[0.25, 1e60, 0.25]", "std must be finite");
  refused("mean", "[0, 0, -1e60]", "mean must be finite");
  refused("mean", "[0, 0, NaN]", "m is not a manifest");
  refused("mean", "[0, 0, null]", "m is not a manifest");
  refused("mean", "[0, 0]", "list of 3 numbers");
}

void test_one_line() {
  const std::string good = "R\u00b2MRF \u20ac \U0001f4f7";
  CHECK(one_line(good) == good);
  CHECK(one_line("a\nb\x1b[31mc\x7f\td\u009be") == "a b [31mc  d e");
  CHECK(one_line("gpj.\u202e.exe\u2066\u2069\u200f\u2028|") == "gpj. .exe    |");  // would be shown the other way round
  CHECK(one_line("\u2027\u202f\u2065\u206a") == "\u2027\u202f\u2065\u206a");  // their neighbours are not touched
  CHECK(one_line("\xff \xc3") == "? ?");  // not UTF-8, and cut short
  CHECK(one_line("\xc0\x80 \xe0\x80\x80 \xf0\x80\x80\x80") == "?? ??? ????");  // longer than necessary
  CHECK(one_line("\xed\xa0\x80 \xf4\x90\x80\x80") == "??? ????");  // a surrogate, beyond the last character
}

// A PNG with an EXIF chunk, little- or big-endian, whose only tag is the orientation 6.
std::string turned_png(bool little) {
  using namespace std::string_literals;
  const std::string exif = little ? "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"s
                                  : "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"s;
  return "\x89PNG\r\n\x1a\n\0\0\0\x01tEXt?crc?\0\0\0\x16"s + "eXIf" + exif;
}

void test_exif() {
  const auto orientation = [](const std::string &file) {
    return exif_orientation(reinterpret_cast<const std::uint8_t *>(file.data()), file.size());
  };
  for (const bool little : {true, false}) {
    const std::string whole = turned_png(little);
    CHECK(orientation(whole) == 6);
    for (std::size_t n = 0; n < whole.size() - 3; ++n) CHECK(orientation(whole.substr(0, n)) == 1);
    for (std::size_t i = 0; i < whole.size(); ++i) {  // however a byte is changed, the result is an orientation
      std::string damaged = whole;
      damaged[i] = '\xff';
      CHECK(orientation(damaged) >= 1 && orientation(damaged) <= 8);
    }
  }
}

void test_agreement() {
  Manifest manifest;
  manifest.outputs = {{"map", "float32", {1, 1, kFree, 8}, ""}};
  const auto check = [&](std::vector<TensorSpec> found) { check_agreement({}, found, manifest, "m"); };
  check({{"map", "float32", {1, 1, 5, 8}, ""}});
  CHECK_THROWS(ArtifactError, check({{"map", "float16", {1, 1, 5, 8}, ""}}), "float16");
  CHECK_THROWS(ArtifactError, check({{"map", "float32", {1, 1, 5, 9}, ""}}), "its manifest says");
  CHECK_THROWS(ArtifactError, check({{"out", "float32", {1, 1, 5, 8}, ""}}), "m has out");
  CHECK_THROWS(ArtifactError, check({}), "its manifest says map");
  manifest = parse_contract(kManifest, "m");
  CHECK_THROWS(ArtifactError, check({}), "but the contract inside it says image");
}

// 7x5 pixels of noise. No two pixels are alike, and rows begin 30 bytes apart.
std::vector<std::uint8_t> noise(bool bgr) {
  std::vector<std::uint8_t> image(5 * 30, 99);
  std::uint32_t state = 1;
  for (std::size_t y = 0; y < 5; ++y) {
    for (std::size_t i = 0; i < 21; ++i) {
      state = state * 1664525U + 1013904223U;
      const std::size_t channel = bgr ? 2 - i % 3 : i % 3;
      image[y * 30 + i - i % 3 + channel] = static_cast<std::uint8_t>(state >> 24U);
    }
  }
  return image;
}

// SHA-256 of that noise as resized by Pillow 13: smaller, larger, and along one side only.
void test_resize() {
  struct Resized {
    std::uint32_t width, height;
    const char *sha256;
  };
  for (const auto &[width, height, sha256] : {
           Resized{3, 2, "e3039c5c054c8d09b315bb6ad280b2085fd4380d246a273eff30842b2bc2444c"},
           Resized{9, 8, "afce84b8c11012091cd8cb7340ca6123e795cd8ba4fc18a9bf755979d5bbd6e0"},
           Resized{7, 2, "f9f3d15fc10b1a5e065eccd764a40131b491f62628dbad958cff716340481be1"},
           Resized{2, 5, "b4332ebce2584f89f42b2c156d92205d6a20cd29365baed70d076778c8a8cadb"},
       }) {
    for (const bool bgr : {false, true}) {
      std::string out(std::size_t{width} * height * 3, '\0');
      resize_rgb({noise(bgr).data(), 7, 5, 30, bgr}, width, height, reinterpret_cast<std::uint8_t *>(out.data()));
      CHECK(digest(out) == sha256);
    }
  }
}

void test_resize_map() {
  const auto pixels = noise(false);
  std::vector<float> map;
  for (std::size_t i = 0; i < 35; ++i) map.push_back(static_cast<float>(pixels[i / 7 * 30 + i % 7 * 3]) / 255.0F);
  std::vector<float> small;
  resize_map(map.data(), 7, 5, 3, 2, [&](std::uint32_t, const float *made) { small.insert(small.end(), made, made + 3); });
  CHECK((small == std::vector<float>{0x1.496aaap-2F, 0x1.42843ap-1F, 0x1.55700ap-1F, 0x1.872a14p-2F, 0x1.208cb4p-1F,
                                     0x1.146786p-1F}));  // Pillow's
  // twice as many samples: a quarter and three quarters, by the triangle's weights
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
  test_fit();
  test_fitting();
  test_mirroring();
  test_limits();
  test_normalisation();
  test_one_line();
  test_exif();
  test_agreement();
  test_resize();
  test_resize_map();
  return exit_code();
}
