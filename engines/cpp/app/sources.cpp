#include "sources.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <unordered_map>

#include "failure.h"
#include "sha256.h"

namespace {

namespace fs = std::filesystem;

// SUFFIXES in r2mrf_deploy/images.py. What stb cannot decode is reported, not passed over.
constexpr std::array<const char *, 10> kSuffixes{".jpg",  ".jpeg", ".png", ".bmp", ".tif",
                                                 ".tiff", ".webp", ".ppm", ".pgm", ".gif"};
constexpr std::size_t kLongestName = 255;  // bytes, on all usual file systems

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool is_photograph(const fs::directory_entry &entry) {
  const std::string name = entry.path().filename().string();
  const std::string suffix = lower(entry.path().extension().string());
  std::error_code unknown;
  return std::find(kSuffixes.begin(), kSuffixes.end(), suffix) != kSuffixes.end() && entry.is_regular_file(unknown) &&
         name.rfind("._", 0) != 0;  // AppleDouble: what macOS knows of a file, under the file's suffix
}

// The folders and the name of a source, from the root.
std::vector<std::string> parts_of(const fs::path &source) {
  std::vector<std::string> parts;
  for (const auto &part : fs::absolute(source).relative_path()) {
    if (!part.empty() && part != ".") parts.push_back(part.string());
  }
  return parts;
}

std::string joined(const std::vector<std::string> &parts, std::size_t last, char between) {
  std::string text;
  for (std::size_t i = parts.size() - last; i < parts.size(); ++i) text += (text.empty() ? "" : std::string(1, between)) + parts[i];
  return text;
}

// What fits of a name, up to the border of a character, and a digest of its source's path.
std::string shortened(const std::string &name, const std::vector<std::string> &parts, std::size_t room) {
  const std::string path = '/' + joined(parts, parts.size(), '/');
  r2mrf_internal::Sha256 digest;
  digest.update(reinterpret_cast<const std::uint8_t *>(path.data()), path.size());
  const std::string mark = '-' + digest.hex().substr(0, 8);
  std::size_t cut = std::min(name.size(), room - mark.size());
  while (cut > 0 && cut < name.size() && (static_cast<unsigned char>(name[cut]) & 0xc0U) == 0x80) --cut;
  return name.substr(0, cut) + mark;
}

}  // namespace

std::vector<fs::path> photographs_in(const fs::path &given) {
  std::error_code why;
  if (!fs::is_directory(given, why)) return {given};
  std::vector<fs::path> found;
  for (fs::directory_iterator entry(given, why), end; !why && entry != end; entry.increment(why)) {
    if (is_photograph(*entry)) found.push_back(entry->path());
  }
  if (why) throw FileError(given.string() + " cannot be read: " + why.message());
  if (found.empty()) {
    std::string suffixes;
    for (const char *suffix : kSuffixes) suffixes += std::string(" ") + suffix;
    throw FileError(given.string() + " has no images (supported suffixes:" + suffixes + ")");
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> names_of(const std::vector<fs::path> &sources, std::size_t longest_suffix) {
  const std::size_t room = kLongestName - longest_suffix;
  std::vector<std::vector<std::string>> parts;
  std::vector<std::string> names;
  for (const fs::path &source : sources) {
    parts.push_back(parts_of(source));
    names.push_back(source.stem().string());
  }
  std::unordered_map<std::string, int> count;
  const auto is_shared = [&](std::size_t i) { return count[lower(names[i])] > 1; };
  std::vector<std::size_t> depths(sources.size(), 0);
  for (std::vector<std::size_t> shared{0}; !shared.empty();) {
    count.clear();
    for (const auto &name : names) ++count[lower(name)];
    shared.clear();
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (is_shared(i) && depths[i] < parts[i].size()) shared.push_back(i);
    }
    for (const std::size_t i : shared) names[i] = joined(parts[i], ++depths[i], '_');
  }
  std::vector<std::string> made;  // paths may be alike with _ for /
  for (std::size_t i = 0; i < sources.size(); ++i) {
    made.push_back(is_shared(i) || names[i].size() > room ? shortened(names[i], parts[i], room) : names[i]);
  }
  return made;
}
