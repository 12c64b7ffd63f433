/* test-image.c - the decoders against samples that this file encodes itself, resizing against
 * a slow exact definition, the geometry of the crops, hostile files. */
#include "../libcommon/image.h"
#include "check.h"

#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>
#if HAVE_JPEG
#include <jpeglib.h>
#endif

static uint32_t state = 1;
static uint32_t noise(void)
{
	state = state * 1664525u + 1013904223u;
	return state >> 8;
}

static const uint8_t back[3] = {200, 30, 77};
static const struct image_options on_back = {{200, 30, 77}, 0, 100000000};
static const struct image_options defaults = IMAGE_DEFAULTS;

/* ---- PNG files of every kind ---- */

struct kind {
	int type, depth;
	bool interlaced, transparent; /* tRNS */
};

struct sample_picture {
	uint32_t width, height;
	uint16_t v[40 * 40 * 4]; /* samples at the file's depth */
	png_color palette[256];
	png_byte alpha[256];
	int colours, alphas;
	png_color_16 key;
};

static int channels_of(int type)
{
	return type == PNG_COLOR_TYPE_RGB_ALPHA ? 4 : type == PNG_COLOR_TYPE_RGB ? 3 : type == PNG_COLOR_TYPE_GRAY_ALPHA ? 2 : 1;
}

static void make_samples(struct sample_picture *s, const struct kind *k, uint32_t width, uint32_t height)
{
	size_t channels = (size_t)channels_of(k->type), n = (size_t)width * height * channels;
	uint32_t max = (1u << k->depth) - 1;
	s->width = width;
	s->height = height;
	s->colours = 1 << (k->depth < 8 ? k->depth : 8);
	s->alphas = k->depth > 1 ? s->colours / 2 : 1; /* fewer than colours: the rest is opaque */
	for (int i = 0; i < s->colours; i++) {
		s->palette[i] = (png_color){(png_byte)noise(), (png_byte)noise(), (png_byte)noise()};
		s->alpha[i] = (png_byte)noise();
	}
	for (size_t i = 0; i < n; i++)
		s->v[i] = (uint16_t)(noise() & max);
	size_t at = n / channels / 2 * channels; /* the key is the colour of a pixel that is there */
	s->key.gray = s->v[at];
	s->key.red = s->v[at];
	s->key.green = channels > 1 ? s->v[at + 1] : 0;
	s->key.blue = channels > 2 ? s->v[at + 2] : 0;
}

static void to_buf(png_structp png, png_bytep p, size_t n)
{
	struct error e = {0};
	if (buf_add(png_get_io_ptr(png), p, n, &e))
		abort();
}

static void encode(struct buf *out, const struct sample_picture *s, const struct kind *k)
{
	static uint8_t raw[40][40 * 8];
	png_bytep rows[40];
	int channels = channels_of(k->type);
	memset(raw, 0, sizeof raw);
	for (uint32_t y = 0; y < s->height; y++) {
		rows[y] = raw[y];
		for (uint32_t i = 0; i < s->width * (uint32_t)channels; i++) {
			uint32_t v = s->v[y * s->width * (uint32_t)channels + i], bit = i * (uint32_t)k->depth;
			if (k->depth == 16)
				raw[y][2 * i] = (uint8_t)(v >> 8), raw[y][2 * i + 1] = (uint8_t)v;
			else
				raw[y][bit / 8] |= (uint8_t)(v << (8 - k->depth - (int)(bit % 8)));
		}
	}
	out->n = 0;
	png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
	png_infop info = png_create_info_struct(png);
	png_set_write_fn(png, out, to_buf, NULL);
	png_set_IHDR(png, info, s->width, s->height, k->depth, k->type, k->interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
		     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
	if (k->type == PNG_COLOR_TYPE_PALETTE)
		png_set_PLTE(png, info, s->palette, s->colours);
	if (k->transparent)
		png_set_tRNS(png, info, s->alpha, s->alphas, &s->key);
	png_text text = {.compression = PNG_TEXT_COMPRESSION_zTXt,
			 .key = "Comment",
			 .text = "skipped by readers",
			 .text_length = 18};
	png_set_text(png, info, &text, 1); /* ancillary chunks must do no harm */
	png_set_gAMA(png, info, 0.3);
	png_write_info(png, info);
	png_write_image(png, rows);
	png_write_end(png, info);
	png_destroy_write_struct(&png, &info);
}

/* What a pixel must come out as, in floating point and from the format's definition. */
static void expected(double rgb[3], const struct sample_picture *s, const struct kind *k, uint32_t i)
{
	int channels = channels_of(k->type);
	double max = (1u << k->depth) - 1, c[3], a = 1;
	const uint16_t *v = s->v + (size_t)i * (size_t)channels;
	for (int j = 0; j < 3; j++)
		c[j] = v[channels >= 3 ? j : 0] / max;
	if (channels == 2 || channels == 4)
		a = v[channels - 1] / max;
	if (k->type == PNG_COLOR_TYPE_PALETTE) {
		c[0] = s->palette[v[0]].red / 255.0;
		c[1] = s->palette[v[0]].green / 255.0;
		c[2] = s->palette[v[0]].blue / 255.0;
		a = k->transparent && v[0] < s->alphas ? s->alpha[v[0]] / 255.0 : 1;
	} else if (k->transparent) {
		bool hit = channels == 1 ? v[0] == s->key.gray : v[0] == s->key.red && v[1] == s->key.green && v[2] == s->key.blue;
		a = hit ? 0 : 1;
	}
	for (int j = 0; j < 3; j++)
		rgb[j] = 255 * c[j] * a + back[j] * (1 - a);
}

/* Worst distance from the exact value; 0.5 is rounding to nearest. */
static double worst(const struct pixels *p, const struct sample_picture *s, const struct kind *k)
{
	double bad = 0;
	for (uint32_t i = 0; i < s->width * s->height; i++) {
		double rgb[3];
		expected(rgb, s, k, i);
		for (int j = 0; j < 3; j++)
			bad = fmax(bad, fabs(rgb[j] - p->rgb[3 * i + (uint32_t)j]));
	}
	return bad;
}

static void test_png_kinds(void)
{
	static const struct {
		int type, depths[5];
	} types[] = {{PNG_COLOR_TYPE_GRAY, {1, 2, 4, 8, 16}},
		     {PNG_COLOR_TYPE_RGB, {8, 16}},
		     {PNG_COLOR_TYPE_PALETTE, {1, 2, 4, 8}},
		     {PNG_COLOR_TYPE_GRAY_ALPHA, {8, 16}},
		     {PNG_COLOR_TYPE_RGB_ALPHA, {8, 16}}};
	static const uint32_t sizes[][2] = {{1, 1}, {5, 3}, {17, 9}, {33, 40}};
	static struct sample_picture s;
	struct buf file = {0};
	struct pixels p = {0};
	for (size_t t = 0; t < ARRAY_LEN(types); t++) {
		for (int d = 0; d < 5 && types[t].depths[d]; d++) {
			for (int variant = 0; variant < 4; variant++) {
				struct kind k = {types[t].type, types[t].depths[d], variant & 1, variant & 2};
				if (k.transparent && (k.type & PNG_COLOR_MASK_ALPHA))
					continue;
				for (size_t z = 0; z < ARRAY_LEN(sizes); z++) {
					struct error e = {0};
					make_samples(&s, &k, sizes[z][0], sizes[z][1]);
					encode(&file, &s, &k);
					int r = image_decode(&p, file.p, file.n, &on_back, "test", &e);
					CHECK(r == 0 && p.width == s.width && p.height == s.height && worst(&p, &s, &k) < 0.5 + 1e-6,
					      "PNG type %d depth %d interlaced %d tRNS %d %ux%u: %s", k.type, k.depth, k.interlaced,
					      k.transparent, s.width, s.height, e.text);
				}
			}
		}
	}
	buf_free(&file);
	image_free(&p);
}

static void test_png_round_trip(void)
{
	struct error e = {0};
	struct pixels p = {0}, q = {0};
	struct buf file = {0};
	const struct image_text text[] = {{"Title", "a red heart"}, {"Comment", "c\xc5\x93ur"}};
	CHECK(pixels_resize(&p, 37, 23, &e) == 0, "memory");
	for (size_t i = 0; i < 3 * 37 * 23; i++)
		p.rgb[i] = (uint8_t)noise();
	CHECK(image_write_png(&file, &p, text, 2, &e) == 0, "write: %s", e.text);
	CHECK(image_decode(&q, file.p, file.n, &defaults, "t", &e) == 0 && memcmp(p.rgb, q.rgb, 3 * 37 * 23) == 0,
	      "written PNG reads back: %s", e.text);
	CHECK(memmem(file.p, file.n, "tEXtTitle\0a red heart", 21) != NULL, "ASCII text is in tEXt");
	CHECK(memmem(file.p, file.n, "iTXtComment", 11) != NULL, "other text is in iTXt");
	buf_free(&file);
	image_free(&p);
	image_free(&q);
}

/* ---- hostile files ---- */

static uint32_t crc(const uint8_t *p, size_t n)
{
	uint32_t c = 0xffffffff;
	for (size_t i = 0; i < n; i++) {
		c ^= p[i];
		for (int b = 0; b < 8; b++)
			c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
	}
	return ~c;
}

static void put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* Claim another size in the IHDR, with the right checksum. */
static int decode_claiming(struct buf *file, uint32_t width, uint32_t height, struct error *e)
{
	struct pixels p = {0};
	put32(file->p + 16, width);
	put32(file->p + 20, height);
	put32(file->p + 29, crc(file->p + 12, 17));
	int r = image_decode(&p, file->p, file->n, &defaults, "t", e);
	image_free(&p);
	return r;
}

static void test_hostile_png(void)
{
	static const uint32_t sizes[][2] = {{1000000, 1000000}, {0, 5}, {5, 0}, {16385, 1}, {16384, 16384},
					    {0x7fffffff, 1}, {0xffffffff, 0xffffffff}, {33, 41}};
	static struct sample_picture s;
	struct kind k = {PNG_COLOR_TYPE_PALETTE, 4, true, true};
	struct buf file = {0}, part = {0};
	struct pixels p = {0};
	make_samples(&s, &k, 33, 40);
	encode(&file, &s, &k);
	int accepted = 0;
	for (size_t n = 0; n < file.n; n++) {
		struct error e = {0};
		uint8_t *exact = malloc(n + 1); /* so that a sanitizer sees a read beyond the end */
		memcpy(exact, file.p, n);
		accepted += image_decode(&p, exact, n, &defaults, "t", &e) == 0;
		free(exact);
	}
	CHECK(accepted == 0, "a PNG cut at any byte is refused (%d were not)", accepted);
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		struct error e = {0};
		CHECK(decode_claiming(&file, sizes[i][0], sizes[i][1], &e) == -1 && (e.status == STATUS_BAD || e.status == STATUS_LIMIT),
		      "claimed size %u x %u is refused", sizes[i][0], sizes[i][1]);
	}
	encode(&file, &s, &k);
	for (int i = 0; i < 20000; i++) { /* damaged bytes: any result, no crash */
		struct error e = {0};
		buf_set(&part, file.p, file.n, &e);
		for (uint32_t flips = noise() % 4 + 1; flips; flips--)
			part.p[noise() % part.n] ^= (uint8_t)(1u << noise() % 8);
		image_decode(&p, part.p, part.n, &defaults, "t", &e);
	}
	CHECK(true, "bit flips");
	buf_free(&file);
	buf_free(&part);
	image_free(&p);
}

/* ---- JPEG ---- */

#if HAVE_JPEG
enum { JPEG_WIDTH = 96, JPEG_HEIGHT = 64 };

/* A smooth picture, as JPEG keeps well: red grows to the right, green downwards. */
static uint8_t smooth_value(uint32_t x, uint32_t y, int c)
{
	return (uint8_t)(c == 0 ? 20 + 2 * x : c == 1 ? 30 + 3 * y : 128);
}

static void encode_jpeg(struct buf *out, int components, int orientation, bool progressive)
{
	struct jpeg_compress_struct jpeg;
	struct jpeg_error_mgr manager;
	unsigned char *p = NULL;
	unsigned long n = 0;
	struct error e = {0};
	/* big-endian TIFF with one entry: 0x0112, SHORT, 1 value */
	uint8_t exif[] = {'E', 'x', 'i', 'f', 0,    0, 'M', 'M', 0, 42, 0, 0, 0,
			  8,   0,   1,   1,   0x12, 0, 3,   0,   0, 0,  1, 0, (uint8_t)orientation,
			  0,   0,   0,   0,   0,    0};
	jpeg.err = jpeg_std_error(&manager);
	jpeg_create_compress(&jpeg);
	jpeg_mem_dest(&jpeg, &p, &n);
	jpeg.image_width = JPEG_WIDTH;
	jpeg.image_height = JPEG_HEIGHT;
	jpeg.input_components = components;
	jpeg.in_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
	jpeg_set_defaults(&jpeg);
	jpeg_set_quality(&jpeg, 97, TRUE);
	if (progressive)
		jpeg_simple_progression(&jpeg);
	jpeg_start_compress(&jpeg, TRUE);
	if (orientation)
		jpeg_write_marker(&jpeg, JPEG_APP0 + 1, exif, sizeof exif);
	for (uint32_t y = 0; y < JPEG_HEIGHT; y++) {
		uint8_t line[JPEG_WIDTH * 4], *row = line;
		for (uint32_t x = 0; x < JPEG_WIDTH; x++)
			for (int c = 0; c < components; c++) /* inks inverted, as Adobe writes them; no black */
				line[x * (uint32_t)components + (uint32_t)c] = c == 3 ? 255 : smooth_value(x, y, c);
		jpeg_write_scanlines(&jpeg, &row, 1);
	}
	jpeg_finish_compress(&jpeg);
	jpeg_destroy_compress(&jpeg);
	out->n = 0;
	if (buf_add(out, p, n, &e))
		abort();
	free(p);
}

/* The largest difference from the smooth picture at 1/reduction of its size. */
static int jpeg_distance(const struct pixels *p, int components, uint32_t reduction)
{
	int worst_seen = p->width * reduction == JPEG_WIDTH && p->height * reduction == JPEG_HEIGHT ? 0 : 999;
	for (uint32_t y = 0; worst_seen < 999 && y < p->height; y++)
		for (uint32_t x = 0; x < p->width; x++)
			for (int c = 0; c < 3; c++) {
				uint32_t u = x * reduction + reduction / 2, v = y * reduction + reduction / 2;
				int d = abs(p->rgb[3 * (y * p->width + x) + (uint32_t)c] - smooth_value(u, v, components == 1 ? 0 : c));
				worst_seen = d > worst_seen ? d : worst_seen;
			}
	return worst_seen;
}

static void test_jpeg(void)
{
	struct buf file = {0};
	struct pixels p = {0}, turned = {0};
	/* Quality 97 with halved chroma keeps this gradient within a few values. */
	for (int components = 1; components <= 4; components += components == 1 ? 2 : 1) {
		struct error e = {0};
		encode_jpeg(&file, components, 0, components == 3);
		CHECK(image_decode(&p, file.p, file.n, &defaults, "t", &e) == 0 &&
			      jpeg_distance(&p, components, 1) <= 6,
		      "JPEG of %d components: %s, off by %d", components, e.text, jpeg_distance(&p, components, 1));
	}
	static const uint32_t reductions[][2] = {{0, 1}, {33, 1}, {32, 2}, {17, 2}, {16, 4}, {8, 8}, {1, 8}};
	encode_jpeg(&file, 3, 0, false);
	for (size_t i = 0; i < ARRAY_LEN(reductions); i++) {
		struct error e = {0};
		struct image_options o = IMAGE_DEFAULTS;
		o.least_side = reductions[i][0];
		/* A reduced pixel lies up to 3/2 of the gradient's step beside where it is compared. */
		CHECK(image_decode(&p, file.p, file.n, &o, "t", &e) == 0 && jpeg_distance(&p, 3, reductions[i][1]) <= 8,
		      "JPEG for a side of %u at 1/%u, off by %d", reductions[i][0], reductions[i][1],
		      jpeg_distance(&p, 3, reductions[i][1]));
	}
	for (int o = 1; o <= 8; o++) {
		struct error e = {0};
		encode_jpeg(&file, 3, 0, false);
		bool good = image_decode(&turned, file.p, file.n, &defaults, "t", &e) == 0 && image_orient(&turned, o, &e) == 0;
		encode_jpeg(&file, 3, o, false);
		good = good && image_decode(&p, file.p, file.n, &defaults, "t", &e) == 0 && p.width == turned.width &&
		       memcmp(p.rgb, turned.rgb, 3 * JPEG_WIDTH * JPEG_HEIGHT) == 0;
		CHECK(good, "EXIF orientation %d of a JPEG is honoured: %s", o, e.text);
	}
	int accepted = 0;
	for (size_t n = 0; n < file.n; n++) {
		struct error e = {0};
		uint8_t *exact = malloc(n + 1);
		memcpy(exact, file.p, n);
		accepted += image_decode(&p, exact, n, &defaults, "t", &e) == 0;
		free(exact);
	}
	CHECK(accepted == 0, "a JPEG cut at any byte is refused (%d were not)", accepted);
	for (int i = 0; i < 3000; i++) {
		struct error e = {0};
		size_t at = noise() % file.n;
		uint8_t kept = file.p[at];
		file.p[at] = (uint8_t)noise();
		image_decode(&p, file.p, file.n, &defaults, "t", &e);
		file.p[at] = kept;
	}
	buf_free(&file);
	image_free(&p);
	image_free(&turned);
}
#endif

/* ---- PNM ---- */

static void test_pnm(void)
{
	/* A comment in the header; 16 bit; grey; alpha; three pictures in a row. */
	static const char text[] = "P6 # made by hand\n2 1\n#another\n255\n\x01\x02\x03\xff\x00\x80"
				   "P5\n2 1\n1000\n\x00\x00\x03\xe8"
				   "P7\nWIDTH 2\nHEIGHT 1\n# note\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
				   "\x0a\x14\x1e\x00\x0a\x14\x1e\xff";
	static const uint8_t want[3][6] = {{1, 2, 3, 255, 0, 128}, {0, 0, 0, 255, 255, 255}, {200, 30, 77, 10, 20, 30}};
	struct input s;
	struct pixels p = {0};
	struct error e = {0};
	input_memory(&s, text, sizeof text - 1, "t");
	for (int i = 0; i < 3; i++)
		CHECK(image_read_pnm(&p, &s, &on_back, &e) == 1 && p.width == 2 && p.height == 1 && memcmp(p.rgb, want[i], 6) == 0,
		      "picture %d of three: %s", i, e.text);
	CHECK(image_read_pnm(&p, &s, &on_back, &e) == 0, "then the end");
	static const char *const bad[] = {"P6\n2 1\n255\n12345",
					  "P6\n0 1\n255\n",
					  "P6\n2 1\n0\n",
					  "P6\n2 1\n65536\n",
					  "P6\n-2 1\n255\n",
					  "P6\n99999999999999999999 1\n255\n",
					  "P6\n20000 20000\n255\n",
					  "P6",
					  "P6\n2",
					  "P6\n# comment without end",
					  "P7\nWIDTH 2\nENDHDR\n",
					  "P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\nabc",
					  "P7\nWIDTH\n",
					  "P7\nDEPTH 99999\n",
					  "P6\n2 1\n255x123456"};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct error bad_error = {0};
		input_memory(&s, bad[i], strlen(bad[i]), "t");
		CHECK(image_read_pnm(&p, &s, &defaults, &bad_error) == -1 && bad_error.status, "refused: %s", bad[i]);
	}
	image_free(&p);
}

static void test_colours(void)
{
	uint8_t c[3];
	struct error e = {0};
	CHECK(image_parse_colour("--background", "#0aFf10", c, &e) == 0 && c[0] == 10 && c[1] == 255 && c[2] == 16, "#0aFf10");
	CHECK(image_parse_colour("--background", "white", c, &e) == 0 && c[0] == 255 && c[1] == 255 && c[2] == 255, "white");
	CHECK(image_parse_colour("--background", "#12345", c, &e) == -1 && e.status == STATUS_USAGE, "five digits are refused");
}

/* ---- orientation ---- */

static void test_orientation(void)
{
	/* 2 x 3 pixels a b / c d / e f; what each EXIF orientation must show. */
	static const char *const want[9] = {NULL, "abcdef", "badcfe", "fedcba", "efcdab", "acebdf", "ecafdb", "fdbeca", "bdface"};
	for (int o = 1; o <= 8; o++) {
		struct pixels p = {0};
		struct error e = {0};
		bool good = pixels_resize(&p, 2, 3, &e) == 0;
		for (int i = 0; i < 6; i++)
			memset(p.rgb + 3 * i, 'a' + i, 3);
		good = good && image_orient(&p, o, &e) == 0 && p.width == (o < 5 ? 2 : 3) && p.height == (o < 5 ? 3 : 2);
		for (int i = 0; i < 6; i++)
			good = good && p.rgb[3 * i] == want[o][i];
		CHECK(good, "orientation %d", o);
		image_free(&p);
	}
}

/* ---- resizing ---- */

/* Overlap of result pixel i with source pixel p, in units of 1/out of a source pixel (area), or
 * 1/(out-1) (TensorFlow's aligned corners). */
static int64_t overlap(int64_t i, int64_t p, int64_t step, int64_t size)
{
	int64_t left = i * step > p * size ? i * step : p * size;
	int64_t right = (i + 1) * step < (p + 1) * size ? (i + 1) * step : (p + 1) * size;
	return right > left ? right - left : 0;
}

static int64_t clamp(int64_t v, int64_t high)
{
	return v > high ? high : v;
}

/* One channel of one result pixel by brute force over all source pixels, half to even. */
static int slow_area(const struct pixels *in, int64_t ow, int64_t oh, int64_t x, int64_t y, int c, bool aligned)
{
	int64_t step_x = aligned ? in->width - 1 : in->width, step_y = aligned ? in->height - 1 : in->height;
	int64_t size_x = aligned ? ow - 1 : ow, size_y = aligned ? oh - 1 : oh, sum = 0;
	int64_t beyond = aligned ? 40 : 0; /* source pixels beyond the edge repeat the last */
	for (int64_t v = 0; v < in->height + beyond; v++)
		for (int64_t u = 0; u < in->width + beyond; u++)
			sum += overlap(x, u, step_x, size_x) * overlap(y, v, step_y, size_y) *
			       in->rgb[3 * (clamp(v, in->height - 1) * in->width + clamp(u, in->width - 1)) + c];
	int64_t unit = step_x * step_y, q = sum / unit, rest = 2 * (sum % unit);
	return (int)(rest > unit || (rest == unit && (q & 1)) ? q + 1 : q);
}

static void random_picture(struct pixels *p, uint32_t w, uint32_t h)
{
	struct error e = {0};
	if (pixels_resize(p, w, h, &e))
		abort();
	for (size_t i = 0; i < 3 * (size_t)w * h; i++)
		p->rgb[i] = (uint8_t)(noise() & 1 ? noise() : noise() & 1 ? 255 : 0);
}

static void test_area(void)
{
	static const uint32_t cases[][4] = {{7, 5, 3, 2},  {16, 16, 4, 8}, {13, 17, 13, 17}, {10, 9, 25, 14},
					    {31, 8, 2, 8}, {9, 33, 5, 4},  {2, 2, 5, 5}};
	struct pixels in = {0}, out = {0};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (int aligned = 0; aligned < 2; aligned++) {
			const uint32_t *k = cases[i];
			struct error e = {0};
			int wrong = 0;
			random_picture(&in, k[0], k[1]);
			CHECK(image_scale(&out, &in, k[2], k[3], aligned ? RESIZE_TF_AREA : RESIZE_AREA, &e) == 0, "%s", e.text);
			for (uint32_t y = 0; y < k[3]; y++)
				for (uint32_t x = 0; x < k[2]; x++)
					for (int c = 0; c < 3; c++)
						wrong += out.rgb[3 * (y * k[2] + x) + (uint32_t)c] != slow_area(&in, k[2], k[3], x, y, c, aligned);
			CHECK(wrong == 0, "%s %ux%u to %ux%u equals the definition (%d values differ)", aligned ? "tf-area" : "area",
			      k[0], k[1], k[2], k[3], wrong);
		}
	}
	image_free(&in);
	image_free(&out);
}

/* A part and a window of the result are the same pixels as the whole way round. */
static void test_windows(void)
{
	struct pixels in = {0}, part = {0}, whole = {0}, window = {0};
	struct error e = {0};
	random_picture(&in, 40, 30);
	struct rect from = {5, 3, 21, 20};
	pixels_resize(&part, 21, 20, &e);
	for (size_t y = 0; y < 20; y++)
		memcpy(part.rgb + 3 * 21 * y, in.rgb + 3 * (40 * (y + 3) + 5), 3 * 21);
	for (int f = RESIZE_AUTO; f <= RESIZE_NEAREST; f++) {
		CHECK(image_scale(&whole, &part, 12, 33, (enum resize_filter)f, &e) == 0, "%s", e.text);
		CHECK(image_resize(&window, &in, from, 12, 33, (struct rect){2, 7, 9, 20}, (enum resize_filter)f, &e) == 0, "%s", e.text);
		bool same = true;
		for (size_t y = 0; y < 20; y++)
			same = same && memcmp(window.rgb + 27 * y, whole.rgb + 3 * (12 * (y + 7) + 2), 27) == 0;
		CHECK(same, "filter %d: a window of a part", f);
	}
	image_free(&in);
	image_free(&part);
	image_free(&whole);
	image_free(&window);
}

static double kernel3(double x)
{
	x = fabs(x);
	return x < 1e-12 ? 1 : x >= 3 ? 0 : sin(M_PI * x) / (M_PI * x) * sin(M_PI * x / 3) / (M_PI * x / 3);
}

static double slow_lanczos(const struct pixels *in, uint32_t ow, uint32_t oh, uint32_t x, uint32_t y, int c)
{
	double sx = (double)in->width / ow, sy = (double)in->height / oh, wx = fmax(sx, 1), wy = fmax(sy, 1), sum = 0, total = 0;
	for (uint32_t v = 0; v < in->height; v++)
		for (uint32_t u = 0; u < in->width; u++) {
			double w = kernel3((u + 0.5 - (x + 0.5) * sx) / wx) * kernel3((v + 0.5 - (y + 0.5) * sy) / wy);
			total += w;
			sum += w * in->rgb[3 * (v * in->width + u) + (uint32_t)c];
		}
	return fmin(fmax(sum / total, 0), 255);
}

static void test_lanczos(void)
{
	static const uint32_t cases[][4] = {{8, 8, 20, 17}, {40, 31, 9, 12}, {5, 5, 5, 5}, {3, 20, 16, 4}};
	struct pixels in = {0}, out = {0};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		const uint32_t *k = cases[i];
		struct error e = {0};
		double bad = 0;
		random_picture(&in, k[0], k[1]);
		CHECK(image_scale(&out, &in, k[2], k[3], RESIZE_LANCZOS, &e) == 0, "%s", e.text);
		for (uint32_t y = 0; y < k[3]; y++)
			for (uint32_t x = 0; x < k[2]; x++)
				for (int c = 0; c < 3; c++)
					bad = fmax(bad, fabs(slow_lanczos(&in, k[2], k[3], x, y, c) - out.rgb[3 * (y * k[2] + x) + (uint32_t)c]));
		/* 0.5 of rounding; weights are rounded to 2^-14, at most 18 taps an axis here. */
		CHECK(bad < 0.5 + 255 * 2 * 18 * ldexp(0.5, -14), "lanczos %ux%u to %ux%u: off by %g", k[0], k[1], k[2], k[3], bad);
	}
	image_free(&in);
	image_free(&out);
}

/* ---- crops ---- */

struct range {
	uint32_t low, high;
};

static void widen(struct range *r, uint32_t v)
{
	r->low = v < r->low ? v : r->low;
	r->high = v > r->high ? v : r->high;
}

static bool is(struct range r, uint32_t low, uint32_t high)
{
	return r.low == low && r.high == high;
}

/* Many draws: ends of every range are reached and never passed. */
static void test_crop_ranges(void)
{
	enum { SIZE = 64, W = 120, H = 104 };
	struct range none = {UINT32_MAX, 0}, x[5], y[5], t[5], wx[5], mirrored[5];
	for (int m = 0; m < 5; m++) {
		x[m] = y[m] = t[m] = wx[m] = mirrored[m] = none;
		for (uint32_t i = 0; i < 4000; i++) {
			struct crop c;
			struct error e = {0};
			bool good = crop_plan(&c, (enum crop_mode)m, W, H, SIZE, 7, i & 3, i / 4, &e) == 0 && c.from.x + c.from.width <= W &&
				    c.from.y + c.from.height <= H && c.window.x + c.window.width <= c.width &&
				    c.window.y + c.window.height <= c.height && c.x + c.window.width <= SIZE && c.y + c.window.height <= SIZE;
			if (!good)
				CHECK(false, "mode %d: a crop outside of the picture", m);
			widen(&x[m], c.from.x);
			widen(&y[m], c.from.y);
			widen(&t[m], c.width);
			widen(&wx[m], c.window.x);
			widen(&mirrored[m], c.mirrored);
		}
	}
	CHECK(is(x[CROP_CENTER], 8, 8) && is(y[CROP_CENTER], 0, 0) && is(t[CROP_CENTER], 64, 64), "center");
	CHECK(is(x[CROP_RANDOM], 0, 16) && is(y[CROP_RANDOM], 0, 0) && is(t[CROP_RANDOM], 64, 64) &&
		      is(mirrored[CROP_RANDOM], 0, 0),
	      "random");
	/* B22: t in 9/8..12/8 of 64 = 72..96; windows reach 96 - 64; mirrored by chance. */
	CHECK(is(x[CROP_DVAE], 0, 16) && is(t[CROP_DVAE], 72, 96) && is(wx[CROP_DVAE], 0, 32) &&
		      is(mirrored[CROP_DVAE], 0, 1),
	      "paper-dvae");
	/* F5: spare 16: 3*16/8 = 6 up to but not 5*16/8 = 10; t in 64..72; never mirrored. */
	CHECK(is(x[CROP_DALLE], 6, 9) && is(y[CROP_DALLE], 0, 0) && is(t[CROP_DALLE], 64, 72) && is(wx[CROP_DALLE], 0, 8) &&
		  is(mirrored[CROP_DALLE], 0, 0), "paper-dalle");
	CHECK(is(x[CROP_PAD], 0, 0) && is(t[CROP_PAD], 64, 64), "pad");
}

static void test_crop_details(void)
{
	struct crop c, again;
	struct error e = {0};
	CHECK(crop_plan(&c, CROP_PAD, 100, 50, 64, 0, 0, 0, &e) == 0 && c.width == 64 && c.height == 32 && c.y == 16 &&
		      c.x == 0,
	      "pad 100x50");
	CHECK(crop_plan(&c, CROP_PAD, 1, 10000, 64, 0, 0, 0, &e) == 0 && c.width == 1 && c.height == 64,
	      "pad of a sliver keeps a pixel");
	CHECK(crop_plan(&c, CROP_DVAE, 300, 63, 64, 0, 0, 0, &e) == -1 && e.status == STATUS_BAD,
	      "the paper's crop refuses small pictures");
	e = (struct error){0};
	/* Sides between S and 9/8 S: t stays at the side, as the minima in listing 1 say. */
	CHECK(crop_plan(&c, CROP_DVAE, 70, 70, 64, 0, 0, 0, &e) == 0 && c.width == 70, "paper-dvae of 70 pixels");
	crop_plan(&c, CROP_DVAE, 300, 200, 64, 5, 1, 99, &e);
	crop_plan(&again, CROP_DVAE, 300, 200, 64, 5, 1, 99, &e);
	CHECK(memcmp(&c, &again, sizeof c) == 0, "the same keys give the same crop");
	crop_plan(&again, CROP_DVAE, 300, 200, 64, 5, 2, 99, &e);
	CHECK(memcmp(&c, &again, sizeof c) != 0, "another variant gives another crop");

	struct pixels in = {0}, out = {0};
	random_picture(&in, 8, 4);
	crop_plan(&c, CROP_PAD, 8, 4, 8, 0, 0, 0, &e);
	CHECK(crop_apply(&out, &in, &c, 8, back, RESIZE_AUTO, &e) == 0 && memcmp(out.rgb, back, 3) == 0 &&
		  memcmp(out.rgb + 3 * 16, in.rgb, 3 * 32) == 0 && memcmp(out.rgb + 3 * 63, back, 3) == 0, "letterbox: %s", e.text);
	c = (struct crop){{0, 0, 4, 4}, 4, 4, {0, 0, 4, 4}, 0, 0, true};
	CHECK(crop_apply(&out, &in, &c, 4, back, RESIZE_AREA, &e) == 0 && memcmp(out.rgb, in.rgb + 9, 3) == 0 &&
		  memcmp(out.rgb + 9, in.rgb, 3) == 0, "mirrored");
	image_free(&in);
	image_free(&out);
}

int main(void)
{
	test_png_kinds();
	test_png_round_trip();
	test_hostile_png();
#if HAVE_JPEG
	test_jpeg();
#endif
	test_pnm();
	test_colours();
	test_orientation();
	test_area();
	test_windows();
	test_lanczos();
	test_crop_ranges();
	test_crop_details();
	return check_done();
}
