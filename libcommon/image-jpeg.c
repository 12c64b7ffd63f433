/* image-jpeg.c - JPEG through libjpeg-turbo: reduced decoding in the DCT domain, EXIF
 * orientation, CMYK.  Built without the library it only says so. */
#include "image.h"

#if HAVE_JPEG
#include <jerror.h>
#include <jpeglib.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

struct jpeg_job {
	struct jpeg_error_mgr manager; /* first: libjpeg hands back a pointer to it */
	struct jpeg_progress_mgr progress;
	struct jpeg_decompress_struct jpeg;
	jmp_buf leave;
	uint8_t *row; /* a CMYK row */
	char message[JMSG_LENGTH_MAX];
};

static struct jpeg_job *job_of(j_common_ptr jpeg)
{
	return (struct jpeg_job *)jpeg->err;
}

static void on_error(j_common_ptr jpeg)
{
	struct jpeg_job *job = job_of(jpeg);
	jpeg->err->format_message(jpeg, job->message);
	longjmp(job->leave, 1);
}

/* libjpeg paints what is missing grey and only warns: training data must not hold that. */
static void on_message(j_common_ptr jpeg, int level)
{
	int code = jpeg->err->msg_code;
	if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE))
		on_error(jpeg);
}

/* A few kilobytes can ask for thousands of passes over a large picture. */
static void on_progress(j_common_ptr jpeg)
{
	struct jpeg_job *job = job_of(jpeg);
	if (job->jpeg.input_scan_number > IMAGE_MAX_SCANS) {
		snprintf(job->message, sizeof job->message, "more than %d scans", IMAGE_MAX_SCANS);
		longjmp(job->leave, 1);
	}
}

/* ---- EXIF: a TIFF header and a list of twelve-byte entries, of which one is wanted ---- */

static uint32_t tiff_number(const uint8_t *p, size_t n, size_t at, int bytes, bool big)
{
	uint32_t v = 0;
	if (at > n || (size_t)bytes > n - at)
		return 0;
	for (int i = 0; i < bytes; i++)
		v |= (uint32_t)p[at + (size_t)i] << 8 * (big ? bytes - 1 - i : i);
	return v;
}

static int exif_orientation(const uint8_t *p, size_t n)
{
	if (n < 14 || memcmp(p, "Exif\0\0", 6) != 0)
		return 1;
	p += 6, n -= 6;
	bool big = p[0] == 'M';
	size_t at = tiff_number(p, n, 4, 4, big), count = tiff_number(p, n, at, 2, big);
	for (size_t i = 0; i < count && at + 14 + 12 * i <= n; i++)
		if (tiff_number(p, n, at + 2 + 12 * i, 2, big) == 0x0112)
			return (int)tiff_number(p, n, at + 10 + 12 * i, 2, big);
	return 1;
}

static int orientation_of(const struct jpeg_decompress_struct *jpeg)
{
	for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next)
		if (m->marker == JPEG_APP0 + 1) /* the first APP1 that is EXIF decides */
			if (m->data_length >= 6 && memcmp(m->data, "Exif\0\0", 6) == 0)
				return exif_orientation(m->data, m->data_length);
	return 1;
}

/* ---- decoding ---- */

/* The largest of 1, 2, 4, 8 that leaves the shorter side at least `least`. */
static unsigned reduction(uint32_t width, uint32_t height, uint32_t least)
{
	uint32_t side = width < height ? width : height;
	unsigned by = 1;
	while (least && by < 8 && side / (by * 2) >= least)
		by *= 2;
	return by;
}

/* Adobe's files, nearly all that exist, hold inverted inks; others are taken as they are. */
static void cmyk_row(uint8_t *to, const uint8_t *from, size_t n, bool inverted)
{
	for (size_t x = 0; x < n; x++) {
		uint32_t k = inverted ? from[4 * x + 3] : 255u - from[4 * x + 3];
		for (size_t i = 0; i < 3; i++) {
			uint32_t c = inverted ? from[4 * x + i] : 255u - from[4 * x + i];
			to[3 * x + i] = (uint8_t)((c * k + 127) / 255);
		}
	}
}

static int read_rows(struct jpeg_job *job, struct pixels *out, struct error *e)
{
	struct jpeg_decompress_struct *jpeg = &job->jpeg;
	bool cmyk = jpeg->out_color_space == JCS_CMYK;
	if (pixels_resize(out, jpeg->output_width, jpeg->output_height, e))
		return -1;
	if (cmyk && !(job->row = mem_alloc(jpeg->output_width, 4, e)))
		return -1;
	while (jpeg->output_scanline < jpeg->output_height) {
		uint8_t *to = out->rgb + 3 * (size_t)jpeg->output_scanline * jpeg->output_width;
		JSAMPROW row = cmyk ? job->row : to;
		if (jpeg_read_scanlines(jpeg, &row, 1) == 1 && cmyk)
			cmyk_row(to, job->row, jpeg->output_width, jpeg->saw_Adobe_marker);
	}
	jpeg_finish_decompress(jpeg);
	return 0;
}

static int decode(struct jpeg_job *job, struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o,
		  const char *name, struct error *e)
{
	struct jpeg_decompress_struct *jpeg = &job->jpeg;
	jpeg_mem_src(jpeg, p, n);
	jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
	jpeg_read_header(jpeg, TRUE);
	if (image_check_size(jpeg->image_width, jpeg->image_height, o, name, e))
		return -1;
	int orientation = orientation_of(jpeg);
	bool inks = jpeg->jpeg_color_space == JCS_CMYK || jpeg->jpeg_color_space == JCS_YCCK;
	jpeg->out_color_space = inks ? JCS_CMYK : JCS_RGB;
	jpeg->scale_num = 1;
	jpeg->scale_denom = reduction(jpeg->image_width, jpeg->image_height, o->least_side);
	jpeg->dct_method = JDCT_ISLOW; /* exact and, with SIMD, as fast as the others */
	jpeg->progress = &job->progress;
	jpeg_start_decompress(jpeg);
	return read_rows(job, out, e) ? -1 : image_orient(out, orientation, e);
}

int image_decode_jpeg(struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o, const char *name,
		      struct error *e)
{
	struct jpeg_job *job = mem_zero(1, sizeof *job, e);
	if (!job)
		return -1;
	volatile int r = -1;
	job->jpeg.err = jpeg_std_error(&job->manager);
	job->manager.error_exit = on_error;
	job->manager.emit_message = on_message;
	job->progress.progress_monitor = on_progress;
	if (setjmp(job->leave)) {
		r = fail(e, STATUS_BAD, "%s: damaged JPEG: %s", name, job->message);
	} else {
		jpeg_create_decompress(&job->jpeg);
		r = decode(job, out, p, n, o, name, e);
	}
	jpeg_destroy_decompress(&job->jpeg);
	free(job->row);
	free(job);
	return r;
}

#else

int image_decode_jpeg(struct pixels *out, const uint8_t *p, size_t n, const struct image_options *o, const char *name,
		      struct error *e)
{
	return fail(e, STATUS_BAD, "%s: is a JPEG, and this build reads none; expected PNG, PPM, PGM or PAM", name);
}

#endif
