#include "manifest.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "error.h"
#include "file.h"
#include "sha256.h"

namespace r2mrf_internal {
namespace {

using nlohmann::json;

constexpr std::size_t kMostBytes = std::size_t{64} << 20U;  // a manifest with many measurements has a few hundred kB
constexpr int kMostNested = 100;  // a manifest nests about ten levels deep
constexpr std::int64_t kLargestDimension = std::int64_t{1} << 24U;
constexpr std::size_t kMostTensors = 4096;

Shape shape_from(const json &dims) {
  Shape shape;
  for (const json &d : dims) {
    if (d.is_string()) {
      shape.push_back(kFree);
      continue;
    }
    const auto size = d.is_number_integer() ? d.get<std::int64_t>() : 0;
    if (size < 1 || size > kLargestDimension) throw ArtifactError("a dimension of " + d.dump() + " is not a valid size");
    shape.push_back(size);
  }
  return shape;
}

std::vector<TensorSpec> specs_from(const json &list) {
  if (!list.is_array() || list.size() > kMostTensors) {
    throw ArtifactError("inputs and outputs must be lists of at most " + std::to_string(kMostTensors) + " entries");
  }
  std::vector<TensorSpec> specs;
  for (const json &item : list) {
    TensorSpec spec{item.at("name").get<std::string>(), item.at("dtype").get<std::string>(), {}, ""};
    if (!item.at("shape").is_array()) throw ArtifactError("a shape must be a list");
    spec.shape = shape_from(item.at("shape"));
    if (const auto layout = item.find("layout"); layout != item.end() && !layout->is_null()) {
      spec.layout = layout->get<std::string>();
      if (spec.layout != "NHWC" && spec.layout != "NCHW") throw ArtifactError("unknown layout \"" + spec.layout + '"');
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

// Three numbers that are finite in single precision.
std::array<float, 3> channels_from(const json &preprocess, const char *field) {
  const json &said = preprocess.at(field);
  std::array<float, 3> channels{};
  if (!said.is_array() || said.size() != channels.size()) {
    throw ArtifactError(std::string("preprocess.") + field + " must be a list of 3 numbers");
  }
  for (std::size_t i = 0; i < channels.size(); ++i) {
    const auto value = said[i].get<double>();
    if (!(std::abs(value) <= std::numeric_limits<float>::max())) {
      throw ArtifactError(std::string("preprocess.") + field + " must be finite, not " + said[i].dump());
    }
    channels[i] = static_cast<float>(value);
  }
  return channels;
}

Preprocess preprocess_from(const json &said) {
  const auto color = said.value("color", std::string("RGB"));
  if (color != "RGB") throw ArtifactError("unknown preprocess.color \"" + color + '"');
  const auto fit = said.value("fit", std::string("stretch"));
  if (fit != "letterbox" && fit != "stretch") throw ArtifactError("unknown preprocess.fit \"" + fit + '"');
  const auto longest = said.value("longest_side", json(Preprocess{}.longest_side));
  const auto side = longest.is_number_integer() ? longest.get<std::int64_t>() : 0;
  if (side < 1 || side > kLargestDimension) {
    throw ArtifactError("preprocess.longest_side must be a whole number from 1, not " + longest.dump());
  }
  const Preprocess with{channels_from(said, "mean"), channels_from(said, "std"), side, fit == "letterbox"};
  if (!std::all_of(with.std.begin(), with.std.end(), [](float s) { return s > 0; })) {
    throw ArtifactError("preprocess.std must be greater than 0, not " + said.at("std").dump());
  }
  return with;
}

Target target_from(const json &said) {
  return {said.at("runtime").get<std::string>(), said.at("runtime_version").get<std::string>(),
          said.at("compute_capabilities").get<std::vector<std::string>>(),
          said.value("options", json::object()).contains("versionCompatible")};
}

// A field, or nullptr if it is absent or null.
const json *present(const json &document, const char *field) {
  const auto found = document.find(field);
  return found == document.end() || found->is_null() ? nullptr : &*found;
}

Manifest manifest_from(const json &document, bool bound) {
  if (!document.is_object()) throw ArtifactError("it is not a JSON object");
  if (const auto format = document.value("format", std::string("r2mrf-artifact/1")); format != "r2mrf-artifact/1") {
    throw ArtifactError("its format is \"" + format + "\", but this library reads r2mrf-artifact/1");
  }
  Manifest manifest;
  manifest.kind = document.at("kind").get<std::string>();
  if (bound) manifest.sha256 = document.at("sha256").get<std::string>();
  if (const json *companions = present(document, "companions")) companions->get_to(manifest.companions);
  manifest.inputs = specs_from(document.at("inputs"));
  manifest.outputs = specs_from(document.at("outputs"));
  if (const json *profiles = present(document, "profiles")) {
    for (const auto &[input, profile] : profiles->items()) {
      if (const json *least = present(profile, "min")) manifest.smallest[input] = shape_from(*least);
      if (const json *most = present(profile, "max")) manifest.largest[input] = shape_from(*most);
    }
  }
  if (const json *preprocess = present(document, "preprocess")) manifest.preprocess = preprocess_from(*preprocess);
  if (const json *precision = present(document, "precision")) precision->get_to(manifest.precision);
  if (const json *target = present(document, "target")) manifest.target = target_from(*target);
  return manifest;
}

// OpenVINO reads the .bin beside an .xml even if the manifest does not list it.
void check_weights_listed(const std::filesystem::path &artifact, const Manifest &manifest, const std::string &name) {
  if (manifest.kind != "openvino") return;
  const auto weights = artifact.stem().string() + ".bin";
  if (manifest.companions.count(weights) == 0) {
    throw ArtifactError(name + " is not a manifest: its companions do not list " + weights + "; make the artifact again");
  }
}

std::string joined_names(const std::vector<TensorSpec> &specs) {
  std::string names;
  for (const TensorSpec &spec : specs) names += (names.empty() ? "" : ", ") + spec.name;
  return names;
}

bool agree(const TensorSpec &a, const TensorSpec &b) {
  return a.dtype == b.dtype && std::equal(a.shape.begin(), a.shape.end(), b.shape.begin(), b.shape.end(),
                                          [](auto x, auto y) { return x == y || x == kFree || y == kFree; });
}

void check_specs(const std::vector<TensorSpec> &found, const std::vector<TensorSpec> &said, const std::string &source,
                 const std::string &name) {
  for (const TensorSpec &spec : said) {
    const auto same = std::find_if(found.begin(), found.end(), [&](const auto &f) { return f.name == spec.name; });
    if (same == found.end() || found.size() != said.size()) {
      throw ArtifactError(name + " has " + joined_names(found) + ", but " + source + " says " + joined_names(said));
    }
    if (!agree(*same, spec)) {
      throw ArtifactError(name + " has " + same->words() + ", but " + source + " says " + spec.words());
    }
  }
}

// Limits the depth because nlohmann-json copies and prints values recursively.
json document_from(std::string_view text) {
  if (text.size() > kMostBytes) throw ArtifactError("it is too large: more than 64 MiB");
  return json::parse(text, [](int depth, json::parse_event_t, const json &) {
    if (depth > kMostNested) throw ArtifactError("its values are nested too deeply");
    return true;
  });
}

Manifest parsed(std::string_view text, const std::string &failing, bool bound) {
  try {
    return manifest_from(document_from(text), bound);
  } catch (const ArtifactError &e) {
    throw ArtifactError(failing + ": " + e.what());
  } catch (const json::exception &e) {
    throw ArtifactError(failing + ": " + e.what());
  }
}

Manifest checked_manifest(const std::filesystem::path &artifact, const std::filesystem::path &path) {
  if (const auto why = why_not_a_file(path); !why.empty()) throw ArtifactError(why);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw ArtifactError(path.string() + " cannot be read");
  std::error_code unknown;
  if (std::filesystem::file_size(path, unknown) > kMostBytes || unknown) {
    throw ArtifactError(path.string() + " is not a manifest: it is too large, or not a file");
  }
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  Manifest manifest = parse_manifest(text, path.string());
  check_weights_listed(artifact, manifest, path.string());
  auto expected = manifest.companions;
  expected[artifact.filename().string()] = manifest.sha256;
  for (const auto &[file, digest] : expected) {
    if (std::filesystem::path(file).filename() != file) {
      throw ArtifactError(path.string() + " is not a manifest: companion \"" + file + "\" is not in the same folder");
    }
    const auto where = artifact.parent_path() / file;
    if (const auto why = why_not_a_file(where); !why.empty()) {
      throw ArtifactError(why + "; it belongs to " + artifact.filename().string());
    }
    if (sha256_of(where) != digest) {
      throw ArtifactError(where.string() + " does not match " + path.filename().string() +
                          " (SHA-256 differs): it was changed or only half written; make the artifact again");
    }
  }
  return manifest;
}

}  // namespace

Dtype dtype_of(std::string_view name) {
  if (name == "uint8") return Dtype::uint8;
  if (name == "float16") return Dtype::float16;
  return name == "float32" ? Dtype::float32 : Dtype::other;
}

std::size_t size_of(Dtype dtype) {
  if (dtype == Dtype::uint8) return 1;
  return dtype == Dtype::float16 ? 2 : 4;
}

std::string TensorSpec::words() const {
  std::string dims;
  for (const auto d : shape) dims += (dims.empty() ? "" : "x") + (d == kFree ? std::string("free") : std::to_string(d));
  return name + ": " + dtype + " [" + dims + "]" + (layout.empty() ? "" : " " + layout);
}

std::size_t element_count(const Shape &shape) {
  return std::accumulate(shape.begin(), shape.end(), std::size_t{1},
                         [](std::size_t n, std::int64_t d) { return n * static_cast<std::size_t>(d); });
}

Manifest parse_manifest(std::string_view text, const std::string &name) {
  return parsed(text, name + " is not a manifest", true);
}

Manifest parse_contract(std::string_view text, const std::string &name) {
  Manifest contract = parsed(text, name + ": the contract inside it cannot be used", false);
  contract.source = "the contract inside it";
  return contract;
}

// If a process was stopped while it replaced an artifact, the new manifest is still in the .json.next file.
std::optional<Manifest> manifest_beside(const std::filesystem::path &artifact) {
  std::vector<std::filesystem::path> documents;
  for (const char *suffix : {".json", ".json.next"}) {
    auto path = artifact;
    path += suffix;
    std::error_code unknown;
    if (std::filesystem::exists(path, unknown)) documents.push_back(path);
  }
  for (const auto &document : documents) {
    try {
      return checked_manifest(artifact, document);
    } catch (const ArtifactError &) {
      if (document == documents.back()) throw;
    }
  }
  return std::nullopt;
}

void check_agreement(const std::vector<TensorSpec> &inputs, const std::vector<TensorSpec> &outputs,
                     const Manifest &manifest, const std::string &name) {
  check_specs(inputs, manifest.inputs, manifest.source, name);
  check_specs(outputs, manifest.outputs, manifest.source, name);
}

}  // namespace r2mrf_internal
