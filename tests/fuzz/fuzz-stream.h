/* fuzz-stream.h - read a whole token stream in every way; for the targets stream and frames. */
#ifndef FUZZ_STREAM_H
#define FUZZ_STREAM_H

void fuzz_stream(const char *path);

#endif
