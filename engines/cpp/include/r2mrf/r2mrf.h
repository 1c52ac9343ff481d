/* Run r2mrf-deploy's artifacts: camera bytes in, a map of what is in focus out.
 *
 * An artifact is a model file and its manifest, x.onnx + x.onnx.json. Every function that can fail returns a status; what
 * went wrong is in r2mrf_last_error(). Nothing is thrown across this boundary.
 *
 * Threads: an engine may be run by any number of threads at once. Closing it while one of them still runs it is an error
 * of the caller's. r2mrf_last_error() and r2mrf_last_times() are each thread's own. A plan runs on the CUDA device that was
 * current (cudaSetDevice) in the thread that opened it, whichever thread runs it; every thread's own is left as it is. */
#ifndef R2MRF_H
#define R2MRF_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define R2MRF_API
#else
#define R2MRF_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define R2MRF_NOEXCEPT noexcept
extern "C" {
#else
#define R2MRF_NOEXCEPT
#endif

/* Values are never changed or used again; new ones may come. */
typedef int32_t r2mrf_status;
#define R2MRF_OK 0
#define R2MRF_USAGE 1       /* a null pointer, an unknown colour: the calling program is wrong */
#define R2MRF_INPUT 2       /* a size or stride that is no image's, a file that does not exist */
#define R2MRF_ARTIFACT 3    /* the artifact is damaged, is not what its manifest says, or computes what is not finite */
#define R2MRF_UNAVAILABLE 4 /* this build or this machine lacks what the artifact needs */
#define R2MRF_INTERNAL 5    /* out of memory, or a fault of this library's */

typedef int32_t r2mrf_color;
#define R2MRF_RGB 0
#define R2MRF_BGR 1

/* An opened artifact. */
typedef struct r2mrf_engine r2mrf_engine;

/* The library's version, "major.minor.patch". Never null; lives as long as the program. */
R2MRF_API const char *r2mrf_version(void) R2MRF_NOEXCEPT;

/* The backends in this build, separated by spaces: "openvino tensorrt", or "" where there is none. Lives as long as the
 * program. */
R2MRF_API const char *r2mrf_backends(void) R2MRF_NOEXCEPT;

/* What the calling thread's last failure was, in one line of UTF-8; "" after a success. Valid until the thread's next
 * call. */
R2MRF_API const char *r2mrf_last_error(void) R2MRF_NOEXCEPT;

/* Open an artifact; its name's ending chooses the backend (.onnx, .xml: OpenVINO on the CPU; .plan: TensorRT).
 *
 * artifact: path of the model file. Its manifest must be beside it and match it by SHA-256.
 * threads: CPU threads of one inference; 0 leaves that to the backend. A plan runs on the GPU and takes only 0.
 * engine: receives the engine; null after a failure. */
R2MRF_API r2mrf_status r2mrf_open(const char *artifact, uint32_t threads, r2mrf_engine **engine) R2MRF_NOEXCEPT;

/* Close an engine. Null is allowed. */
R2MRF_API void r2mrf_close(r2mrf_engine *engine) R2MRF_NOEXCEPT;

/* What computes, in words: "OpenVINO 2026.4.1, CPU, 8 threads, f32". Lives as long as the engine; null for null. */
R2MRF_API const char *r2mrf_device(const r2mrf_engine *engine) R2MRF_NOEXCEPT;

/* The network's own height and width, to which images are resized; 0 and 0 where the artifact leaves them free. */
R2MRF_API r2mrf_status r2mrf_input_size(const r2mrf_engine *engine, uint32_t *height, uint32_t *width) R2MRF_NOEXCEPT;

/* The map of an image, at the image's size.
 *
 * pixels: 3 bytes a pixel in the order that color says, height rows of width pixels that begin stride bytes apart.
 * map: height rows of width values that begin map_stride BYTES apart: floats in [0, 1], 1 = in focus. The map must not
 *   overlap the image. After a failure its content is undefined. */
R2MRF_API r2mrf_status r2mrf_run_f32(r2mrf_engine *engine, const uint8_t *pixels, uint32_t width, uint32_t height,
                                     size_t stride, r2mrf_color color, float *map, size_t map_stride) R2MRF_NOEXCEPT;

/* The same as bytes: 255 times the value, rounded to the nearest, halves to even. */
R2MRF_API r2mrf_status r2mrf_run_u8(r2mrf_engine *engine, const uint8_t *pixels, uint32_t width, uint32_t height,
                                    size_t stride, r2mrf_color color, uint8_t *map, size_t map_stride) R2MRF_NOEXCEPT;

/* Where the time of the calling thread's last successful run went, in milliseconds. It never grows: what else there may be
 * to say will have a function of its own. */
typedef struct r2mrf_times {
  double prepare; /* resizing and normalising the image */
  double enqueue; /* the host's part of starting the inference */
  double h2d;     /* copying to the device; 0 on a CPU */
  double compute; /* the inference */
  double d2h;     /* copying from the device; 0 on a CPU */
  double finish;  /* resizing the map */
} r2mrf_times;

R2MRF_API r2mrf_status r2mrf_last_times(r2mrf_times *times) R2MRF_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
