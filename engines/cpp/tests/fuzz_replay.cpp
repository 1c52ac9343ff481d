// Feeds the fuzz target a fixed sequence of damaged inputs: bytes changed, removed and repeated. Needs no libFuzzer.
#include <cstdio>
#include <random>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);

namespace {

constexpr int kInputs = 30000;

std::string damaged(std::string text, std::mt19937 &random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  for (std::size_t n = 1 + below(4); n > 0 && !text.empty(); --n) {
    const std::size_t at = below(text.size());
    switch (below(4)) {
      case 0: text[at] = static_cast<char>(below(256)); break;
      case 1: text.erase(at, 1 + below(8)); break;
      case 2: text.insert(at, text.substr(below(text.size()), 1 + below(32))); break;
      default: text.insert(at, 1 + below(300), "[{\"9-"[below(5)]); break;
    }
  }
  return text;
}

}  // namespace

int main() {
  using namespace std::string_literals;
  const std::string seeds[] = {
      R"({"format": "r2mrf-artifact/1", "kind": "plan", "sha256": "0", "companions": {"a": "b"}, "inputs": [{"name": "i",)"
      R"("dtype": "uint8", "shape": ["n", 2, 2, 3], "layout": "NHWC"}], "outputs": [], "profiles": {"i": {"max": [1]}},)"
      R"("preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "color": "RGB"}, "precision": "fp32", "target": {"runtime":)"
      R"("tensorrt", "runtime_version": "1", "compute_capabilities": ["8.6"], "options": {}}})",
      "vtrt" + std::string(60, '\0') + "rest",
      "\xff\xd8\xff\xe1\0\x1e" "Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\xff\xda"s};
  std::mt19937 random(1);
  for (int i = 0; i < kInputs; ++i) {
    const std::string input = damaged(seeds[i % 3], random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t *>(input.data()), input.size());
  }
  std::printf("%d inputs\n", kInputs);
  return 0;
}
