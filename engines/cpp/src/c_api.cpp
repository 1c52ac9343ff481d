// The C API: checks the arguments and turns exceptions into a status and a message.
#include <r2mrf/r2mrf.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "engine.h"
#include "error.h"
#include "message.h"

struct r2mrf_engine {
  r2mrf_internal::Engine engine;
};

namespace {

using r2mrf_internal::InputError;
using r2mrf_internal::Pixels;
using r2mrf_internal::UsageError;

constexpr std::uint32_t kLargestSide = 1U << 20U;

thread_local std::string last_error;
thread_local r2mrf_times last_times{};

r2mrf_status failed(r2mrf_status status, const char *message) noexcept {
  try {
    last_error = r2mrf_internal::one_line(message);
  } catch (...) {
    last_error.clear();  // no memory for the message: only the status is left
  }
  return status;
}

template <typename Body>
r2mrf_status guarded(Body body) noexcept {
  last_error.clear();
  try {
    body();
    return R2MRF_OK;
  } catch (const r2mrf_internal::Failure &e) {
    return failed(e.status(), e.what());
  } catch (const std::bad_alloc &) {
    return failed(R2MRF_INTERNAL, "out of memory");
  } catch (const std::exception &e) {
    return failed(R2MRF_INTERNAL, e.what());
  } catch (...) {
    return failed(R2MRF_INTERNAL, "an exception of unknown type");
  }
}

void require(const void *pointer, const char *name) {
  if (pointer == nullptr) throw UsageError(std::string(name) + " is null");
}

// Throws InputError unless rows of `least` bytes that begin `stride` bytes apart can be addressed.
void check_stride(std::size_t stride, std::size_t least, std::uint32_t rows, const char *name) {
  if (stride < least) {
    throw InputError(std::string(name) + " is " + std::to_string(stride) + " bytes, but a row has " +
                     std::to_string(least));
  }
  if (stride > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) / rows) {
    throw InputError(std::string(name) + " times the height exceeds the address space");
  }
}

Pixels checked(const std::uint8_t *pixels, std::uint32_t width, std::uint32_t height, std::size_t stride,
               r2mrf_color color) {
  require(pixels, "pixels");
  if (width == 0 || height == 0 || width > kLargestSide || height > kLargestSide) {
    throw InputError("an image of " + std::to_string(width) + "x" + std::to_string(height) +
                     " pixels: each side must be 1 to " + std::to_string(kLargestSide));
  }
  check_stride(stride, std::size_t{width} * 3, height, "stride");
  if (color != R2MRF_RGB && color != R2MRF_BGR) {
    throw UsageError("color is " + std::to_string(color) + ": it must be R2MRF_RGB or R2MRF_BGR");
  }
  return {pixels, width, height, stride, color == R2MRF_BGR};
}

template <typename T, typename Write>
r2mrf_status run(r2mrf_engine *engine, const std::uint8_t *pixels, std::uint32_t width, std::uint32_t height,
                 std::size_t stride, r2mrf_color color, T *map, std::size_t map_stride, Write write) noexcept {
  return guarded([&] {
    require(engine, "engine");
    const Pixels image = checked(pixels, width, height, stride, color);
    require(map, "map");  // after the size, because the map of no pixels may be null
    check_stride(map_stride, std::size_t{width} * sizeof(T), height, "map_stride");
    if (map_stride % alignof(T) != 0) throw InputError("map_stride must be a multiple of " + std::to_string(alignof(T)));
    auto *bytes = reinterpret_cast<std::byte *>(map);
    last_times = engine->engine.run(image, [&](std::uint32_t y, const float *row) {
      write(row, reinterpret_cast<T *>(bytes + y * map_stride), width);
    });
  });
}

}  // namespace

extern "C" {

const char *r2mrf_version(void) noexcept { return R2MRF_VERSION; }

const char *r2mrf_backends(void) noexcept { return r2mrf_internal::backend_names(); }

const char *r2mrf_last_error(void) noexcept { return last_error.c_str(); }

r2mrf_status r2mrf_open(const char *artifact, std::uint32_t threads, r2mrf_engine **engine) noexcept {
  return guarded([&] {
    require(engine, "engine");
    *engine = nullptr;
    require(artifact, "artifact");
    *engine = new r2mrf_engine{{artifact, threads}};
  });
}

void r2mrf_close(r2mrf_engine *engine) noexcept { delete engine; }

const char *r2mrf_device(const r2mrf_engine *engine) noexcept {
  return engine == nullptr ? nullptr : engine->engine.device().c_str();
}

r2mrf_status r2mrf_input_size(const r2mrf_engine *engine, std::uint32_t *height, std::uint32_t *width) noexcept {
  return guarded([&] {
    require(engine, "engine");
    require(height, "height");
    require(width, "width");
    *height = engine->engine.input_height();
    *width = engine->engine.input_width();
  });
}

r2mrf_status r2mrf_run_f32(r2mrf_engine *engine, const std::uint8_t *pixels, std::uint32_t width, std::uint32_t height,
                           std::size_t stride, r2mrf_color color, float *map, std::size_t map_stride) noexcept {
  return run(engine, pixels, width, height, stride, color, map, map_stride,
             [](const float *row, float *out, std::uint32_t n) { std::memcpy(out, row, std::size_t{n} * sizeof(float)); });
}

r2mrf_status r2mrf_run_u8(r2mrf_engine *engine, const std::uint8_t *pixels, std::uint32_t width, std::uint32_t height,
                          std::size_t stride, r2mrf_color color, std::uint8_t *map, std::size_t map_stride) noexcept {
  return run(engine, pixels, width, height, stride, color, map, map_stride,
             [](const float *row, std::uint8_t *out, std::uint32_t n) {
               for (std::uint32_t x = 0; x < n; ++x) out[x] = static_cast<std::uint8_t>(std::nearbyint(row[x] * 255.0F));
             });
}

r2mrf_status r2mrf_last_times(r2mrf_times *times) noexcept {
  return guarded([&] {
    require(times, "times");
    *times = last_times;
  });
}

}  // extern "C"
