/* Calls the library from C: prints the mean of the map of a grey image. */
#include <r2mrf/r2mrf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 320, HEIGHT = 240 };

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s ARTIFACT\n", argv[0]);
    return 2;
  }
  r2mrf_engine *engine = NULL;
  uint8_t *pixels = malloc((size_t)WIDTH * HEIGHT * 3);
  float *map = malloc((size_t)WIDTH * HEIGHT * sizeof(float));
  r2mrf_status status = R2MRF_INTERNAL;
  if (pixels && map) {
    memset(pixels, 128, (size_t)WIDTH * HEIGHT * 3);
    status = r2mrf_open(argv[1], 0, &engine);
    if (status == R2MRF_OK) {
      status = r2mrf_run_f32(engine, pixels, WIDTH, HEIGHT, (size_t)WIDTH * 3, R2MRF_RGB, map, WIDTH * sizeof(float));
    }
  }
  if (status == R2MRF_OK) {
    double sum = 0;
    for (size_t i = 0; i < (size_t)WIDTH * HEIGHT; ++i) sum += (double)map[i];
    printf("%s: %.4f in focus\n", r2mrf_device(engine), sum / (WIDTH * HEIGHT));
  } else {
    fprintf(stderr, "%s\n", r2mrf_last_error());
  }
  r2mrf_close(engine);
  free(map);
  free(pixels);
  return status == R2MRF_OK ? 0 : 1;
}
