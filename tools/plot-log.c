/* plot-log.c - JSON lines, as the trainers' --log writes them -> a PNG with curves. */
#include "../libcommon/chart.h"
#include "../libcommon/opt.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_KEYS = 16, MAX_LINE = 1 << 20 };

static const char *x_key = "step", *y_keys = "loss", *output, *title = "";
static int64_t width = 960, height = 540, smooth = 1;
static double y_min = NAN, y_max = NAN;
static bool log_x, log_y;

/* The y keys, cut at the commas. */
struct keys {
	char *text;
	char *v[MAX_KEYS];
	int n;
};

static int parse_keys(struct keys *k, struct error *e)
{
	char *save = NULL;
	k->text = mem_string(y_keys, e);
	if (!k->text)
		return -1;
	for (char *word = strtok_r(k->text, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		if (k->n == MAX_KEYS)
			return fail(e, STATUS_USAGE, "more than %d keys for --y", MAX_KEYS);
		k->v[k->n++] = word;
	}
	return k->n ? 0 : fail(e, STATUS_USAGE, "--y names no key");
}

/* A finite number under the key; false when there is none (null stands for NaN in logs). */
static bool number(const json_t *object, const char *key, double *out)
{
	const json_t *v = json_object_get(object, key);
	*out = json_number_value(v);
	return json_is_number(v) && isfinite(*out);
}

/* One line into the series of the keys, series[0 .. keys->n-1]; `seen` gets the keys that have numbers. */
static int take_line(struct chart_series *series, const struct keys *keys, json_t *seen, json_t *line, struct error *e)
{
	double x, y;
	const char *key;
	json_t *value;
	json_object_foreach(line, key, value)
		if (json_is_number(value) && json_object_set_new(seen, key, json_true()))
			return fail(e, STATUS_LIMIT, "out of memory");
	if (!number(line, x_key, &x))
		return 0;
	for (int i = 0; i < keys->n; i++)
		if (number(line, keys->v[i], &y) && chart_add_point(&series[i], x, y, e))
			return -1;
	return 0;
}

/* A last line that is cut belongs to a run that is still writing: it is passed over. */
static int read_log(struct chart_series *series, const struct keys *keys, json_t *seen, const char *path, struct error *e)
{
	struct input in;
	struct buf line = {0};
	struct error why;
	int r;
	if (input_open(&in, path, e))
		return -1;
	for (uint64_t number_of_line = 1, wrong = 0; (r = input_line(&in, &line, MAX_LINE, e)) == 1; number_of_line++) {
		json_error_t bad;
		json_t *object = line.n && !wrong ? json_loadb((char *)line.p, line.n, 0, &bad) : NULL;
		if (wrong) {
			r = fail(e, STATUS_BAD, "%s", why.text);
		} else if (line.n && !json_is_object(object)) {
			why = (struct error){0};
			fail(&why, STATUS_BAD, "%s: line %llu: expected a JSON object", in.name, (unsigned long long)number_of_line);
			wrong = number_of_line;
		} else if (object) {
			r = take_line(series, keys, seen, object, e);
		}
		json_decref(object);
		if (r < 0)
			break;
		if (number_of_line == 1 && wrong) {
			r = fail(e, STATUS_BAD, "%s", why.text);
			break;
		}
	}
	buf_free(&line);
	input_close(&in);
	return r < 0 ? -1 : 0;
}

/* Which keys gave no point, and which ones the log has: "LOG: has no numbers of 'a' 'b'; it has epoch loss step". */
static int describe_absent(struct buf *out, const char *path, const struct chart_series *series, const struct keys *keys,
                           json_t *seen, struct error *e)
{
	const char *key;
	json_t *value;
	bool has_x = json_object_get(seen, x_key) != NULL, whole = true;
	for (int i = 0; i < keys->n; i++)
		whole = whole && series[i].n;
	if (whole)
		return 0;
	int r = buf_printf(out, e, "%s: has no numbers of", strcmp(path, "-") ? path : "stdin");
	if (r == 0 && !has_x)
		r = buf_printf(out, e, " '%s'", x_key);
	for (int i = 0; r == 0 && has_x && i < keys->n; i++)
		if (series[i].n == 0)
			r = buf_printf(out, e, " '%s'", keys->v[i]);
	if (r == 0)
		r = buf_printf(out, e, json_object_size(seen) ? "; it has" : " or any other key");
	json_object_foreach(seen, key, value)
		if (r == 0)
			r = buf_printf(out, e, " %s", key);
	return r;
}

/* What tells this curve from the others: the log's name when there are several, the key. */
static int set_label(struct chart_series *s, const char *path, bool files, const char *key, bool several, struct error *e)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
	size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name);
	if (files && buf_add(&s->label, name, n, e))
		return -1;
	return several || !files ? buf_printf(&s->label, e, "%s%s", files ? " " : "", key) : 0;
}

/* All files; a key that a log lacks is told, or is the failure when nothing at all can be drawn. */
static int read_logs(struct chart_series *series, const struct keys *keys, char *const *files, int n, struct error *e)
{
	struct buf absent = {0};
	size_t points = 0;
	int r = 0;
	for (int i = 0; r == 0 && i < n; i++) {
		struct chart_series *of_file = series + (size_t)i * (size_t)keys->n;
		json_t *seen = json_object();
		size_t before = absent.n;
		r = read_log(of_file, keys, seen, files[i], e);
		for (int k = 0; r == 0 && k < keys->n; points += of_file[k++].n)
			r = set_label(&of_file[k], files[i], n > 1, keys->v[k], keys->n > 1, e);
		if (r == 0)
			r = describe_absent(&absent, files[i], of_file, keys, seen, e);
		if (r == 0 && absent.n > before && (n > 1 || points))
			note(0, "%s", absent.p + before);
		json_decref(seen);
	}
	if (r == 0 && points == 0)
		r = fail(e, STATUS_BAD, "%s", n > 1 ? "no points to draw" : (char *)absent.p);
	buf_free(&absent);
	return r;
}

/* At each point the mean of the points less than `smooth` before it on the horizontal axis, so
 * that a sparse curve beside a dense one keeps its shape. */
static int smoothed(struct chart_series *to, const struct chart_series *from, struct error *e)
{
	double sum = 0;
	for (size_t first = 0, i = 0; i < from->n; i++) {
		sum += from->y[i];
		for (; first < i && from->x[first] <= from->x[i] - (double)smooth; first++)
			sum -= from->y[first];
		if (chart_add_point(to, from->x[i], sum / (double)(i + 1 - first), e))
			return -1;
	}
	return buf_set(&to->label, from->label.p, from->label.n, e);
}

/* Each curve becomes two: the points, faint, then their means. */
static int smooth_all(struct chart_series *series, size_t *n, struct error *e)
{
	size_t raw = *n;
	for (size_t i = raw; smooth > 1 && i-- > 0;) {
		series[2 * i] = series[i];
		series[2 * i + 1] = (struct chart_series){.n = 0};
		if (i)
			series[i] = (struct chart_series){.n = 0};
	}
	for (size_t i = 0; smooth > 1 && i < raw; i++) {
		series[2 * i].faint = true;
		if (smoothed(&series[2 * i + 1], &series[2 * i], e))
			return -1;
	}
	*n = smooth > 1 ? 2 * raw : raw;
	return 0;
}

static int write_chart(const struct chart *c, struct error *e)
{
	struct pixels picture = {0};
	struct buf png = {0};
	int r = chart_draw(&picture, c, e) || image_write_png(&png, &picture, NULL, 0, e) ||
	        write_file(output, png.p, png.n, false, e) ? -1 : 0;
	image_free(&picture);
	buf_free(&png);
	return r;
}

static int plot(char *const *files, int n, struct error *e)
{
	static char dash[] = "-";
	char *const standard[] = {dash};
	struct keys keys = {.n = 0};
	struct chart c = {.width = (uint32_t)width, .height = (uint32_t)height, .title = title, .x_label = x_key,
			  .log_x = log_x, .log_y = log_y, .y_min = y_min, .y_max = y_max};
	files = n ? files : standard;
	n = n ? n : 1;
	int r = parse_keys(&keys, e);
	size_t most = 2 * (size_t)n * (size_t)(keys.n ? keys.n : 1);
	c.series = r == 0 ? mem_zero(most, sizeof *c.series, e) : NULL;
	c.y_label = keys.n == 1 ? keys.v[0] : "";
	if (c.series)
		r = read_logs(c.series, &keys, files, n, e);
	c.n = (size_t)n * (size_t)keys.n;
	if (c.series && r == 0)
		r = smooth_all(c.series, &c.n, e) ? -1 : write_chart(&c, e);
	for (size_t i = 0; c.series && i < most; i++)
		chart_series_free(&c.series[i]);
	free(c.series);
	free(keys.text);
	return e->status ? -1 : r;
}

static const struct opt options[] = {
	OPT_STRING('x', "x", &x_key, "KEY", "the horizontal axis"),
	OPT_STRING('y', "y", &y_keys, "KEY,...", "what to draw"),
	OPT_FLAG(0, "log-x", &log_x, "logarithmic horizontal axis"),
	OPT_FLAG('l', "log-y", &log_y, "logarithmic vertical axis"),
	OPT_REAL(0, "y-min", &y_min, -1e300, 1e300, "Y", "lower end of the vertical axis instead of the data's"),
	OPT_REAL(0, "y-max", &y_max, -1e300, 1e300, "Y", "upper end of the vertical axis instead of the data's"),
	OPT_INT('s', "smooth", &smooth, 1, 1e12, "N", "draw means over N of the horizontal axis, the points pale"),
	OPT_STRING('t', "title", &title, "TEXT", "a line over the chart"),
	OPT_INT(0, "width", &width, 160, STREAM_MAX_SIDE, "N", "pixels across"),
	OPT_INT(0, "height", &height, 120, STREAM_MAX_SIDE, "N", "pixels down"),
	OPT_OUTPUT(&output),
	OPT_END,
};

int main(int argc, char **argv)
{
	static const struct tool tool = {"plot-log", "[OPTION]... [FILE]...", "Draw curves of training logs", options};
	struct error e = {0};
	int first, status = opt_parse(&tool, argc, argv, &first);
	if (status >= 0)
		return finish(status);
	if (!output && isatty(STDOUT_FILENO))
		return finish(opt_misuse("not writing a picture to a terminal; expected -o FILE or a pipe"));
	return finish(plot(argv + first, argc - first, &e) ? report(&e) : STATUS_OK);
}
