#include "output.h"

#include <fcntl.h>
#include <png.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#include "failure.h"

namespace {

namespace fs = std::filesystem;

bool is_full(int error) { return error == ENOSPC || error == EDQUOT; }

[[noreturn]] void cannot_write(const fs::path &file, int error, const std::string &otherwise = "") {
  const std::string why = error == 0 ? otherwise : why_not_written(error);
  const char *cure = is_full(error) ? "" : "; name a folder with -o that can be written";
  throw FileError("cannot write " + file.string() + ": " + why + cure);
}

// Refuses to write through links, into FIFOs and devices, and outside the folder.
void check_target(const fs::path &folder, const std::string &name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
    throw FileError("cannot write " + (folder / name).string() + ": it is not in the output folder");
  }
  std::error_code unknown;
  const auto found = fs::symlink_status(folder / name, unknown).type();
  if (found != fs::file_type::regular && found != fs::file_type::not_found && found != fs::file_type::none) {
    throw FileError("cannot write " + (folder / name).string() + ": it is there and is not a regular file; remove it first");
  }
}

// A new file beside the one that it will replace. It is removed unless it replaced it.
class Staged {
 public:
  explicit Staged(const fs::path &target) : target_(target) {
    int descriptor = -1;
    for (int n = 0; descriptor < 0; ++n) {
      path_ = target.parent_path() / (".r2mrf-" + std::to_string(getpid()) + '-' + std::to_string(n));
      descriptor = open(path_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
      if (descriptor < 0 && errno != EEXIST) cannot_write(target, errno);  // EEXIST: a killed process of this number left it
    }
    file_.reset(fdopen(descriptor, "wb"));
    if (!file_) {
      close(descriptor);
      fail();
    }
  }
  Staged(const Staged &) = delete;
  Staged &operator=(const Staged &) = delete;
  ~Staged() {
    if (!path_.empty()) unlink(path_.c_str());
  }

  [[nodiscard]] std::FILE *file() const { return file_.get(); }
  [[noreturn]] void fail(const std::string &otherwise = "") const { cannot_write(target_, errno, otherwise); }

  void replace() {
    if (std::fflush(file_.get()) != 0 || std::fclose(file_.release()) != 0 || std::rename(path_.c_str(), target_.c_str()) != 0) {
      fail();
    }
    path_.clear();
  }

 private:
  struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
  };
  fs::path target_;
  fs::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace

std::string why_not_written(int error) { return is_full(error) ? "the disk is full" : std::generic_category().message(error); }

void write_png(const fs::path &folder, const std::string &name, std::uint32_t width, std::uint32_t height, int channels,
               const std::uint8_t *pixels) {
  check_target(folder, name);
  std::error_code why;
  fs::create_directories(folder, why);
  if (why) cannot_write(folder, why.value());
  Staged staged(folder / name);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width;
  image.height = height;
  image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  image.flags = PNG_IMAGE_FLAG_FAST;
  errno = 0;
  if (png_image_write_to_stdio(&image, staged.file(), 0, pixels, 0, nullptr) == 0) staged.fail(image.message);
  staged.replace();
}
