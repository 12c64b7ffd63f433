/* test-torch.c - files of torch.save: the published dVAE's layout against the dall_e package's own results, views of
 * all types (tests/golden/make_openai_dvae.py), and hostile files: every truncation, flipped bits, pickles that name
 * what they should not or ask for too much. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "../libcommon/device.h"
#include "../libcommon/dvae-net.h"
#include "../libcommon/pickle.h"
#include "../libcommon/torch-file.h"
#include "golden.h"

#define TOLERANCE 1e-4

static struct error e;

static const char *golden_path(const char *name)
{
	static char path[4096];
	const char *root = getenv("SRC");
	snprintf(path, sizeof path, "%s/tests/golden/openai-dvae/%s", root ? root : ".", name);
	return path;
}

static struct weights *open_golden(const char *name)
{
	e = (struct error){0};
	struct weights *w = weights_open(golden_path(name), &e);
	if (!CHECK(w != NULL, "%s: %s", name, e.text))
		exit(check_done());
	return w;
}

/* ---- the model ---- */

enum { N = 2, S = 32, G = 4, K = 32 };

/* The half `parts` of a file, recognised by its shapes, for pictures of 32 pixels. */
static struct dvae *load_half(const char *file, int parts, const struct ops *ops, struct dev *dev)
{
	struct weights *w = open_golden(file);
	struct dvae_config c;
	struct dvae *d = NULL;
	if (CHECK(dvae_config_from_tensors(&c, parts, w, &e) == 0, "%s: %s", file, e.text)) {
		CHECK(c.size == 256 && c.stem == 1 && c.hidden == 4 && c.groups == 4 && c.blocks == 1 && c.codes == K &&
		      fabs(c.post_gain - 1.0 / 16) < 1e-12, "%s: its sizes", file);
		CHECK(parts == DVAE_ENCODER ? c.kernel == 7 : c.initial == 6, "%s: its first convolution", file);
		c.size = S;
		d = dvae_new(&c, parts, ops, dev, N, &e);
	}
	if (!CHECK(d && params_load(dvae_params(d), BLOCK_W, w, "", &e) == 0, "%s: %s", file, e.text))
		exit(check_done());
	params_refresh(dvae_params(d));
	weights_close(w);
	return d;
}

static void check_encoder(const char *file, const struct weights *want, const struct ops *ops, struct dev *dev)
{
	struct dvae *d = load_half(file, DVAE_ENCODER, ops, dev);
	float *values = golden(want, "rgb"), *logits = golden(want, "logits"), *codes = golden(want, "codes");
	uint8_t rgb[N * S * S * 3];
	int32_t got[N * G * G];
	float got_logits[N * G * G * K];
	for (size_t i = 0; i < sizeof rgb; i++)
		rgb[i] = (uint8_t)values[i];
	CHECK(dvae_encode(d, got, rgb, N, &e) == 0, "%s", e.text);
	d->ops->get(d->dev, got_logits, d->logits, sizeof got_logits);
	double off = relative(got_logits, logits, N * G * G * K);
	CHECK(off < TOLERANCE, "%s: logits are off by %g of their norm", file, off);
	size_t differ = 0;
	for (size_t i = 0; i < N * G * G; i++)
		differ += got[i] != (int32_t)codes[i];
	CHECK(differ == 0, "%s: %zu of %d codes differ", file, differ, N * G * G);
	free(values);
	free(logits);
	free(codes);
	dvae_free(d);
}

static void check_decoder(const char *file, const struct weights *want, const struct ops *ops, struct dev *dev)
{
	struct dvae *d = load_half(file, DVAE_DECODER, ops, dev);
	float *values = golden(want, "codes"), *out = golden(want, "out"), *picture = golden(want, "picture");
	uint8_t rgb[N * S * S * 3];
	int32_t codes[N * G * G];
	float *got = malloc(N * S * S * 6 * sizeof *got), most = 0;
	for (size_t i = 0; i < N * G * G; i++)
		codes[i] = (int32_t)values[i];
	CHECK(dvae_decode(d, rgb, codes, N, &e) == 0, "%s", e.text);
	d->ops->get(d->dev, got, d->out, N * S * S * 6 * sizeof *got);
	double off = relative(got, out, N * S * S * 6);
	CHECK(off < TOLERANCE, "%s: mu and ln b are off by %g of their norm", file, off);
	for (size_t i = 0; i < sizeof rgb; i++)
		most = fmaxf(most, fabsf((float)rgb[i] - 255 * picture[i]));
	CHECK(most < 0.5f + 255 * TOLERANCE, "%s: the picture is off by %g of 255", file, (double)most);
	free(values);
	free(out);
	free(picture);
	free(got);
	dvae_free(d);
}

static void check_model(void)
{
	char text[200];
	struct weights *want = open_golden("expected.safetensors");
	struct dev *dev = cpu_ops()->open(0, DT_F32, 2, text, sizeof text);
	check_encoder("encoder.pkl", want, cpu_ops(), dev);
	check_encoder("encoder-old.pkl", want, cpu_ops(), dev);
	check_encoder("encoder-state.pkl", want, cpu_ops(), dev);
	check_decoder("decoder.pkl", want, cpu_ops(), dev);
	check_decoder("decoder-old.pkl", want, cpu_ops(), dev);
	/* A half that is not there is asked for. */
	struct weights *w = open_golden("decoder.pkl");
	struct dvae_config c;
	CHECK(dvae_config_from_tensors(&c, DVAE_ENCODER, w, &e) && e.status == STATUS_BAD && strstr(e.text, "expected the encoder"),
	      "a decoder as encoder: '%s'", e.text);
	weights_close(w);
	weights_close(want);
	cpu_ops()->close(dev);
}

/* ---- views ---- */

/* Every tensor of both files equal in type, shape and bytes. */
static bool same(const struct weights *a, const struct weights *b)
{
	struct error ignored = {0};
	bool equal = weights_count(a) == weights_count(b);
	for (size_t i = 0; equal && i < weights_count(a); i++) {
		const struct weights_tensor *x = weights_at(a, i), *y = weights_find(b, x->name);
		equal = y && strcmp(x->type, y->type) == 0 && x->rank == y->rank && x->bytes == y->bytes &&
		        memcmp(x->shape, y->shape, sizeof x->shape) == 0;
		uint8_t *p = malloc((size_t)x->bytes + 1), *q = malloc((size_t)x->bytes + 1);
		equal = equal && weights_read_raw(a, x, p, &ignored) == 0 && weights_read_raw(b, y, q, &ignored) == 0 &&
		        memcmp(p, q, (size_t)x->bytes) == 0;
		free(p);
		free(q);
	}
	return equal;
}

static void check_views(void)
{
	static const char *const files[] = {"views.pt", "views-old.pt"};
	struct weights *want = open_golden("views.safetensors");
	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		struct weights *w = open_golden(files[i]);
		CHECK(weights_count(w) == weights_count(want) && same(want, w), "%s: tensors differ", files[i]);
		const struct weights_tensor *t = weights_find(w, "transposed"), *half = weights_find(w, "bf16");
		float got[30], plain[30];
		CHECK(t && t->strided && weights_read(w, t, got, &e) == 0 &&
		      weights_read(w, weights_find(w, "plain"), plain, &e) == 0, "%s: %s", files[i], e.text);
		for (int k = 0; k < 30; k++)
			CHECK(got[k] == plain[k % 6 * 5 + k / 6], "%s: transposed element %d", files[i], k);
		CHECK(half && weights_read(w, half, got, &e) == 0 && fabsf(got[0]) <= 100, "%s: bf16 as f32", files[i]);
		weights_close(w);
	}
	weights_close(want);
}

/* ---- damage ---- */

/* In memory: a hundred thousand files on a disk would take minutes. */
static char scratch[40];
static int scratch_file;

static void open_scratch(void)
{
	scratch_file = memfd_create("hostile", MFD_CLOEXEC);
	snprintf(scratch, sizeof scratch, "/proc/self/fd/%d", scratch_file);
}

static void write_bytes(const void *p, size_t n)
{
	if (ftruncate(scratch_file, (off_t)n) || pwrite(scratch_file, p, n, 0) != (ssize_t)n) {
		perror(scratch);
		exit(1);
	}
}

/* 1 opens and reads as `want`, 0 refused with a message, -1 anything else. */
static int outcome(const void *p, size_t n, const struct weights *want)
{
	write_bytes(p, n);
	e = (struct error){0};
	struct weights *w = weights_open(scratch, &e);
	bool told = e.status && e.text[0];
	int r = !w ? (told ? 0 : -1) : same(want, w) ? 1 : -1;
	/* The CRC of an archive is looked at when a tensor is read. */
	for (size_t i = 0; w && r < 0 && i < weights_count(w); i++)
		if (weights_verify(w, weights_at(w, i), NULL, &e) < 0)
			r = 0;
	weights_close(w);
	return r;
}

static void check_truncations(const char *file, size_t step)
{
	struct buf b = {0};
	struct weights *want = open_golden(file);
	CHECK(read_file(golden_path(file), 1 << 20, &b, &e) == 0, "%s", e.text);
	size_t wrong = 0;
	for (size_t n = 0; n < b.n; n += step)
		wrong += outcome(b.p, n, want) != 0;
	CHECK(wrong == 0, "%s: %zu truncations were not refused", file, wrong);
	CHECK(outcome(b.p, b.n, want) == 1, "%s: whole: %s", file, e.text);
	weights_close(want);
	buf_free(&b);
}

/* An archive's damage is found, or changes nothing; an old container has no checksums, and must only not crash. */
static void check_flips(const char *file, bool protected, size_t step)
{
	struct buf b = {0};
	struct weights *want = open_golden(file);
	CHECK(read_file(golden_path(file), 1 << 20, &b, &e) == 0, "%s", e.text);
	size_t wrong = 0, refused = 0;
	for (size_t bit = 0; bit < 8 * b.n; bit += step) {
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
		int r = outcome(b.p, b.n, want);
		wrong += r < 0;
		refused += r == 0;
		b.p[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	CHECK(!protected || wrong == 0, "%s: %zu flipped bits changed tensors silently", file, wrong);
	CHECK(refused > 0, "%s: no flipped bit was refused", file);
	weights_close(want);
	buf_free(&b);
}

/* ---- pickles ---- */

static const char *few_names(const char *name)
{
	static const char good[] = "collections.OrderedDict";
	return strcmp(name, good) == 0 ? good : NULL;
}

static void check_refused_pickles(void)
{
#define P(text, expected) {text, sizeof text - 1, expected}
	static const struct {
		const char *bytes;
		size_t n;
		const char *expected;
	} cases[] = {
		P("\x80\2cos\nsystem\nX\4\0\0\0true\x85R.", "calls for os.system"),
		P("\x80\4\x8c\2os\x8c\6system\x93\x8c\4true\x85R.", "calls for os.system"),
		P("\x80\2cposix\nsystem\n.", "calls for posix.system"), P("\x80\2c__builtin__\neval\n.", "calls for __builtin__.eval"),
		P("\x80\2ccollections\nOrderedDict.evil\n.", "calls for collections.OrderedDict.evil"),
		P("\x80\2(ios\nsystem\n.", "opcode 0x69"), P("\x80\2\x82\1.", "opcode 0x82"), P("(dp0\n.", "opcode 0x70"),
		P("I1\n.", "opcode 0x49"), P("\x80\1N.", "protocol 1"), P("\x80\6N.", "protocol 6"), P("", "truncated"),
		P("\x80\2", "truncated"), P("\x80\2N", "truncated"), P("\x80\2.", "too few"), P("\x80\2(N1.", "too few"),
		P("\x80\2X\xff\xff\xff\x7fx.", "truncated"), P("\x80\4\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.", "truncated"),
		P("\x80\2\x8b\xff\xff\xff\xffx.", "truncated"), P("\x80\2h\7.", "not remembered"),
		P("\x80\2Nr\xff\xff\xff\xff.", "memo is larger"), P("\x80\2q\1.", "remembers nothing"), P("\x80\2t.", "without a mark"),
		P("\x80\2(Nd.", "no value"), P("\x80\2NNs.", "too few"), P("\x80\2NNNs.", "no dictionary"),
		P("\x80\2]Na}NNs(Ne.", "no list"), P("\x80\2N)R.", "no name"), P("\x80\2ccollections\nOrderedDict\nNR.", "no name"),
		P("\x80\2NNb.", "no object"), P("\x80\2cos", "truncated"), P("\x80\4KaKb\x93.", "no text"),
		P("\x80\2}(K\1u.", "no dictionary"), P("\x80\2(K\1(K\2\x86.", "too few"),
	};
#undef P
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct pickle p;
		e = (struct error){0};
		int r = pickle_read(&p, cases[i].bytes, cases[i].n, "FILE", few_names, &e);
		CHECK(r && e.status == STATUS_BAD && strstr(e.text, cases[i].expected) && strncmp(e.text, "FILE: ", 6) == 0,
		      "pickle %zu: expected '%s', got '%s'", i, cases[i].expected, e.text);
		pickle_free(&p);
	}
}

/* Values as Python reads them. */
static void check_values(void)
{
	static const char text[] = "\x80\2(NJ\xfe\xff\xff\xffK\xc8M\1\2\x8a\2\0\x80\x8a\0\x8a\x0a" "0123456789G\x3f\xf8\0\0\0\0\0\0"
		"\x88\x89X\3\0\0\0abcU\2xyt.";
	struct pickle p;
	e = (struct error){0};
	if (!CHECK(pickle_read(&p, text, sizeof text - 1, "FILE", few_names, &e) == 0, "%s", e.text))
		return;
	struct pickle_value **v = p.root->item;
	CHECK(p.root->kind == PICKLE_TUPLE && p.root->n == 12 && p.used == sizeof text - 1, "a tuple of 12");
	CHECK(v[0]->kind == PICKLE_NONE && v[1]->integer == -2 && v[2]->integer == 200 && v[3]->integer == 513, "numbers");
	CHECK(v[4]->integer == -32768 && v[5]->integer == 0 && v[6]->kind == PICKLE_BYTES && v[6]->n == 10, "long numbers");
	CHECK(v[7]->real == 1.5 && v[8]->integer == 1 && v[9]->integer == 0 && pickle_is(v[10], "abc") && v[11]->n == 2, "others");
	pickle_free(&p);
}

/* Values, levels, marks and copies without end: a message, soon. */
static void check_floods(void)
{
	static const struct {
		const char *start, *unit, *expected;
	} floods[] = {{"", "]", "values"}, {"", "(", "marks"}, {")", "\x85", "values"}, {"N", "2", "stack"}, {"(", "N2", "values"}};
	enum { BYTES = 3 << 20 };
	char *p = malloc(BYTES);
	for (size_t i = 0; i < ARRAY_LEN(floods); i++) {
		size_t from = strlen(floods[i].start), n = strlen(floods[i].unit);
		memcpy(p, floods[i].start, from);
		for (size_t k = from; k < BYTES; k++)
			p[k] = floods[i].unit[(k - from) % n];
		struct pickle out;
		e = (struct error){0};
		CHECK(pickle_read(&out, p, BYTES, "FILE", few_names, &e) && e.status == STATUS_BAD, "flood %zu is refused", i);
		CHECK(strstr(e.text, floods[i].expected) || strstr(e.text, "stack"), "flood %zu: '%s'", i, e.text);
		pickle_free(&out);
	}
	free(p);
}

/* ---- archives around pickles ---- */

static void put_number(struct buf *b, uint64_t v, int bytes)
{
	for (int i = 0; i < bytes; i++)
		buf_add(b, &(uint8_t){i < 8 ? (uint8_t)(v >> (8 * i)) : 0}, 1, &e);
}

/* A file and its line in the directory; wide: sizes and place in zip64's extra field. */
static void put_file(struct buf *b, struct buf *directory, const char *name, const void *p, size_t n, bool wide)
{
	uint64_t crc = crc32(crc32(0, NULL, 0), p, (uInt)n), at = b->n, none = 0xffffffff;
	buf_add(b, "PK\3\4", 4, &e);
	put_number(b, 0, 10);
	put_number(b, crc, 4);
	put_number(b, n, 4);
	put_number(b, n, 4);
	put_number(b, strlen(name), 2);
	put_number(b, 0, 2);
	buf_add(b, name, strlen(name), &e);
	buf_add(b, p, n, &e);
	buf_add(directory, "PK\1\2", 4, &e);
	put_number(directory, 0, 12);
	put_number(directory, crc, 4);
	put_number(directory, wide ? none : n, 4);
	put_number(directory, wide ? none : n, 4);
	put_number(directory, strlen(name), 2);
	put_number(directory, wide ? 28 : 0, 2);
	put_number(directory, 0, 10);
	put_number(directory, wide ? none : at, 4);
	buf_add(directory, name, strlen(name), &e);
	if (!wide)
		return;
	put_number(directory, 1 | 24 << 16, 4);
	put_number(directory, n, 8);
	put_number(directory, n, 8);
	put_number(directory, at, 8);
}

static void put_end(struct buf *b, const struct buf *directory, uint64_t files, bool wide)
{
	size_t at = b->n, end64;
	buf_add(b, directory->p, directory->n, &e);
	end64 = b->n;
	if (wide) {
		buf_add(b, "PK\6\6", 4, &e);
		put_number(b, 44, 8);
		put_number(b, 0, 12);
		put_number(b, files, 8);
		put_number(b, files, 8);
		put_number(b, directory->n, 8);
		put_number(b, at, 8);
		buf_add(b, "PK\6\7", 4, &e);
		put_number(b, 0, 4);
		put_number(b, end64, 8);
		put_number(b, 1, 4);
	}
	buf_add(b, "PK\5\6", 4, &e);
	put_number(b, 0, 4);
	put_number(b, wide ? 0xffff : files, 2);
	put_number(b, wide ? 0xffff : files, 2);
	put_number(b, wide ? 0xffffffff : directory->n, 4);
	put_number(b, wide ? 0xffffffff : at, 4);
	put_number(b, 0, 2);
}

/* An archive of this pickle and a storage "0" of 8 floats. */
static void write_archive_as(const char *pickle, size_t n, bool wide)
{
	static const float storage[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	struct buf b = {0}, directory = {0};
	put_file(&b, &directory, "a/data.pkl", pickle, n, wide);
	put_file(&b, &directory, "a/data/0", storage, sizeof storage, wide);
	put_end(&b, &directory, 2, wide);
	write_bytes(b.p, b.n);
	buf_free(&b);
	buf_free(&directory);
}

static void write_archive(const char *pickle, size_t n)
{
	write_archive_as(pickle, n, false);
}

/* A tensor of storage "0", `n` elements of `type`: offset, shape and strides as opcodes. */
#define TENSOR(type, n, offset, shape, stride) \
	"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n" type "Storage\nX\1\0\0\0" "0X\3\0\0\0cpuK" n "tQ" offset \
	shape stride "\x89Ntr\0\1\0\0R"
#define DICT(value) "\x80\2}X\1\0\0\0a" value "s."

static void check_tensors(void)
{
#define D(value, expected) {DICT(value), sizeof DICT(value) - 1, expected}
	static const struct {
		const char *pickle;
		size_t n;
		const char *expected; /* NULL: fine */
	} cases[] = {
		D(TENSOR("Float", "\10", "K\0", "K\2K\4\x86", "K\4K\1\x86"), NULL),
		D(TENSOR("Float", "\10", "K\1", "K\7\x85", "K\1\x85"), NULL),
		D(TENSOR("Float", "\10", "K\1", "K\10\x85", "K\1\x85"), "beyond its storage"),
		D(TENSOR("Float", "\10", "K\11", "K\0\x85", "K\1\x85"), "beyond its storage"),
		D(TENSOR("Float", "\10", "K\0", "K\2K\4\x86", "K\5K\1\x86"), "beyond its storage"),
		D(TENSOR("Float", "\10", "K\0", "K\x09\x85", "K\0\x85"), "beyond its storage"),
		D(TENSOR("Float", "\10", "K\0", "K\10\x85", "K\0\x85"), NULL),
		D(TENSOR("Float", "\10", "J\xff\xff\xff\xff", "K\1\x85", "K\1\x85"), "expected a storage"),
		D(TENSOR("Float", "\10", "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"), "whole number"),
		D(TENSOR("Float", "\10", "K\0", "K\2\x85", "J\xff\xff\xff\xff\x85"), "whole number"),
		D(TENSOR("Float", "\10", "K\0",
			 "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86",
			 "K\0K\0\x86"),
		  "overflows"),
		D(TENSOR("Float", "\10", "K\0", "K\3\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"),
		  "beyond its storage"),
		D(TENSOR("Float", "\10", "K\0", "K\4\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"),
		  "overflows"),
		D(TENSOR("Float", "\10", "K\0", "K\2K\4\x86", "K\1\x85"), "shape and strides"),
		D(TENSOR("Float", "\x09", "K\0", "K\2\x85", "K\1\x85"), "has 32 bytes, expected 9 elements"),
		D(TENSOR("Double", "\10", "K\0", "K\2\x85", "K\1\x85"), "has 32 bytes"),
		D(TENSOR("Quaternion", "\10", "K\0", "K\2\x85", "K\1\x85"), "calls for torch.QuaternionStorage"),
		D("K\1", "no tensors"),
		D("cos\nsystem\n", "calls for os.system"),
	};
#undef D
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		write_archive(cases[i].pickle, cases[i].n);
		e = (struct error){0};
		struct weights *w = weights_open(scratch, &e);
		bool as_expected = cases[i].expected ? !w && e.status == STATUS_BAD && strstr(e.text, cases[i].expected) : w != NULL;
		CHECK(as_expected, "tensor %zu: expected '%s', got '%s'", i, cases[i].expected ? cases[i].expected : "", e.text);
		weights_close(w);
	}
}

#define SMALL TENSOR("Float", "\10", "K\0", "K\2\x85", "K\1\x85")

static void refused_walk(const char *what, const struct buf *pickle, const char *expected)
{
	write_archive((const char *)pickle->p, pickle->n);
	e = (struct error){0};
	struct weights *w = weights_open(scratch, &e);
	CHECK(!w && e.status == STATUS_BAD && strstr(e.text, expected), "%s: expected '%s', got '%s'", what, expected, e.text);
	weights_close(w);
}

/* Archives with sizes of 64 bits, and with two files of one name. */
static void check_archives(void)
{
	static const char pickle[] = DICT(SMALL);
	float x[2] = {0};
	write_archive_as(pickle, sizeof pickle - 1, true);
	e = (struct error){0};
	struct weights *w = weights_open(scratch, &e);
	CHECK(w && weights_read(w, weights_at(w, 0), x, &e) == 0 && x[0] == 1 && x[1] == 2, "zip64: %s", e.text);
	weights_close(w);
	struct buf b = {0}, directory = {0};
	for (int i = 0; i < 2; i++)
		put_file(&b, &directory, "a/data.pkl", pickle, sizeof pickle - 1, false);
	put_end(&b, &directory, 2, false);
	write_bytes(b.p, b.n);
	e = (struct error){0};
	CHECK(!weights_open(scratch, &e) && strstr(e.text, "stands twice"), "two files of one name: %s", e.text);
	buf_free(&b);
	buf_free(&directory);
}

/* A dictionary that holds itself; forty of which each holds the next one twice, 2^40 paths in all; a tensor alone. */
static void check_walks(void)
{
	static const char loop[] = "\x80\2}q\0(U\1xNX\1\0\0\0ah\0X\1\0\0\0b" SMALL "u.", alone[] = "\x80\2" SMALL ".";
	struct buf b = {0};
	buf_add(&b, loop, sizeof loop - 1, &e);
	refused_walk("a loop", &b, "longer than");
	b.n = 0;
	buf_add(&b, "\x80\2}q\0", 5, &e);
	for (int i = 0; i < 40; i++) {
		const char level[] = {'}', '(', 'X', 1, 0,   0,   0,       'a', 'h', (char)i,      'X',
				      1,   0,   0,   0, 'b', 'h', (char)i, 'u', 'q', (char)(i + 1)};
		buf_add(&b, level, sizeof level, &e);
	}
	static const char last[] = "}(X\1\0\0\0ah\50X\1\0\0\0b" SMALL "u.";
	buf_add(&b, last, sizeof last - 1, &e);
	refused_walk("2^40 paths", &b, "paths");
	buf_free(&b);
	write_archive(alone, sizeof alone - 1);
	e = (struct error){0};
	struct weights *w = weights_open(scratch, &e);
	CHECK(w && weights_find(w, "tensor"), "a tensor alone is called so: %s", e.text);
	weights_close(w);
}

int main(void)
{
	open_scratch();
	check_model();
	check_views();
	check_values();
	check_refused_pickles();
	check_floods();
	check_tensors();
	check_walks();
	check_archives();
	check_truncations("views.pt", 1);
	check_truncations("views-old.pt", 1);
	check_truncations("encoder.pkl", 97);
	check_truncations("decoder-old.pkl", 97);
	check_flips("views.pt", true, 1);
	check_flips("views-old.pt", false, 1);
	check_flips("decoder.pkl", true, 331);
	check_flips("encoder-old.pkl", false, 331);
	return check_done();
}
