/* json-lines.c - records as JSON lines, as tok-load takes them. */
#include "fuzz.h"

#include "../../libcommon/fields.h"
#include "../../libcommon/record.h"

static void use(const struct record *r)
{
	static const struct header none;
	struct error e = {0};
	struct buf out = {0};
	struct record again = {0};
	struct field f;
	/* What tok-load cannot write it refuses; what it writes a reader takes. */
	if (record_encode(&out, r, &none, LAYOUT_PACKED, "fuzz", &e) == 0) {
		struct cursor c = cursor_over(out.p, out.n);
		MUST(cursor_field(&c, &f) && record_decode(&again, f.p, f.n, &none, "again", &e) == 0);
		MUST(record_fields(&again) == record_fields(r) && again.unknown.n == r->unknown.n);
	} else {
		MUST(e.status == STATUS_BAD || e.status == STATUS_LIMIT);
	}
	record_free(&again);
	buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct error e = {0};
	struct record r = {0};
	json_t *o = json_loadb((const char *)p, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
	if (o && record_from_json(&r, o, &e) == 0)
		use(&r);
	else
		MUST(!o || e.status);
	json_decref(o);
	record_free(&r);
	return 0;
}
