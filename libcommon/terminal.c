/* terminal.c - see terminal.h. */
#include "terminal.h"
#include "base64.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

/* ---- which terminal ---- */

static const char *environment(const char *name)
{
	const char *v = getenv(name);
	return v ? v : "";
}

/* The answer to "can you do kitty graphics?" and "what are you?", up to the end of the second. */
static size_t ask(int fd, char *answer, size_t n)
{
	static const char question[] = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c";
	struct error e = {0};
	size_t got = 0;
	double until = seconds_now() + 0.2;
	if (write_full(fd, question, sizeof question - 1, "terminal", &e))
		return 0;
	while (got + 1 < n && seconds_now() < until) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		if (poll(&p, 1, (int)((until - seconds_now()) * 1000) + 1) <= 0)
			break;
		ssize_t k = read(fd, answer + got, n - 1 - got);
		if (k <= 0)
			break;
		got += (size_t)k;
		answer[got] = 0;
		char *device = strstr(answer, "\x1b[?");
		if (device && strchr(device, 'c'))
			break;
	}
	answer[got] = 0;
	return got;
}

/* Attribute 4 in ESC [ ? a ; b ; c ... c is sixel. */
static bool has_sixel(const char *answer)
{
	const char *p = strstr(answer, "\x1b[?");
	for (p = p ? p + 3 : ""; *p && *p != 'c';) {
		char *end;
		long v = strtol(p, &end, 10);
		if (v == 4)
			return true;
		p = *end == ';' ? end + 1 : *end == 'c' || end == p ? "" : end;
	}
	return false;
}

static enum terminal_kind query(void)
{
	char answer[512] = "";
	struct termios before, raw;
	sigset_t all, old;
	int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 || tcgetattr(fd, &before)) {
		if (fd >= 0)
			close(fd);
		return TERMINAL_BLOCKS;
	}
	/* Signals wait until the terminal is as it was. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &old);
	raw = before;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	if (tcsetattr(fd, TCSANOW, &raw) == 0) {
		ask(fd, answer, sizeof answer);
		tcsetattr(fd, TCSAFLUSH, &before);
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	close(fd);
	return strstr(answer, "_Gi=31;OK") ? TERMINAL_KITTY : has_sixel(answer) ? TERMINAL_SIXEL : TERMINAL_BLOCKS;
}

static enum terminal_kind choose(void)
{
	const char *term = environment("TERM"), *program = environment("TERM_PROGRAM");
	if (*environment("TMUX") || strncmp(term, "screen", 6) == 0 || strncmp(term, "tmux", 4) == 0 ||
	    strcmp(term, "linux") == 0 || strcmp(term, "dumb") == 0)
		return TERMINAL_BLOCKS; /* pictures would not get through, or scroll away */
	if (*environment("KITTY_WINDOW_ID") || strstr(term, "kitty") || strstr(term, "ghostty") ||
	    strcmp(program, "ghostty") == 0 || strcmp(program, "WezTerm") == 0)
		return TERMINAL_KITTY;
	return query();
}

void terminal_open(struct terminal *t, int fd, enum terminal_kind kind)
{
	struct winsize size = {.ws_col = 0};
	if (ioctl(fd, TIOCGWINSZ, &size) || size.ws_col == 0)
		size.ws_col = 80;
	t->kind = kind == TERMINAL_AUTO ? choose() : kind;
	t->columns = size.ws_col;
	t->width = size.ws_xpixel ? size.ws_xpixel : size.ws_col * 8u;
	t->few_colours = strcmp(environment("TERM"), "linux") == 0 || strcmp(environment("TERM_PROGRAM"), "Apple_Terminal") == 0;
}

/* ---- kitty: a PNG in base64, in pieces of at most 4096 characters ---- */

static int draw_kitty(struct buf *out, const struct pixels *p, struct error *e)
{
	struct buf png = {0};
	int r = image_write_png(&png, p, NULL, 0, e);
	for (size_t at = 0; r == 0 && at < png.n; at += 3072) {
		size_t n = png.n - at < 3072 ? png.n - at : 3072;
		int more = at + n < png.n;
		r = at == 0 ? buf_printf(out, e, "\x1b_Ga=T,f=100,q=2,m=%d;", more) : buf_printf(out, e, "\x1b_Gm=%d;", more);
		if (r == 0)
			r = base64_add(out, png.p + at, n, e) || buf_add(out, "\x1b\\", 2, e) ? -1 : 0;
	}
	buf_free(&png);
	return r ? -1 : buf_add(out, "\n", 1, e);
}

/* ---- sixel: six levels of each colour, ordered dither, six rows at a time ---- */

enum { SIXEL_COLOURS = 216 };

static uint8_t sixel_colour(const uint8_t *rgb, uint32_t x, uint32_t y)
{
	static const uint8_t bayer[4][4] = {{0, 8, 2, 10}, {12, 4, 14, 6}, {3, 11, 1, 9}, {15, 7, 13, 5}};
	uint32_t colour = 0;
	for (int c = 0; c < 3; c++)
		colour = colour * 6 + (rgb[c] * 5u * 16 + bayer[y & 3][x & 3] * 255u) / (255 * 16);
	return (uint8_t)colour;
}

static int sixel_run(struct buf *out, int bits, uint32_t n, struct error *e)
{
	char c = (char)(63 + bits);
	if (n > 3)
		return buf_printf(out, e, "!%u%c", n, c);
	return buf_add(out, (const char[]){c, c, c}, n, e);
}

static int sixel_colour_row(struct buf *out, int colour, const uint8_t *bits, uint32_t width, struct error *e)
{
	uint32_t run = 0;
	if (buf_printf(out, e, "#%d", colour))
		return -1;
	for (uint32_t x = 0; x < width; x += run) {
		for (run = 1; x + run < width && bits[x + run] == bits[x]; run++)
			;
		if (x + run == width && bits[x] == 0)
			break;
		if (sixel_run(out, bits[x], run, e))
			return -1;
	}
	return buf_add(out, "$", 1, e);
}

static int sixel_band(struct buf *out, const struct pixels *p, uint32_t top, uint8_t *bits, struct error *e)
{
	bool used[SIXEL_COLOURS] = {false};
	memset(bits, 0, (size_t)SIXEL_COLOURS * p->width);
	for (uint32_t y = top; y < top + 6 && y < p->height; y++) {
		for (uint32_t x = 0; x < p->width; x++) {
			uint8_t colour = sixel_colour(p->rgb + 3 * ((size_t)y * p->width + x), x, y);
			used[colour] = true;
			bits[(size_t)colour * p->width + x] |= (uint8_t)(1u << (y - top));
		}
	}
	for (int i = 0; i < SIXEL_COLOURS; i++)
		if (used[i] && sixel_colour_row(out, i, bits + (size_t)i * p->width, p->width, e))
			return -1;
	return buf_add(out, "-", 1, e);
}

static int draw_sixel(struct buf *out, const struct pixels *p, struct error *e)
{
	uint8_t *bits = mem_alloc(p->width, SIXEL_COLOURS, e);
	int r = bits ? buf_printf(out, e, "\x1bPq\"1;1;%u;%u", p->width, p->height) : -1;
	for (int i = 0; r == 0 && i < SIXEL_COLOURS; i++)
		r = buf_printf(out, e, "#%d;2;%d;%d;%d", i, i / 36 * 20, i / 6 % 6 * 20, i % 6 * 20);
	for (uint32_t y = 0; r == 0 && y < p->height; y += 6)
		r = sixel_band(out, p, y, bits, e);
	free(bits);
	return r ? -1 : buf_add(out, "\x1b\\\n", 3, e);
}

/* ---- half blocks: the upper pixel in the foreground, the lower in the background ---- */

static int set_colour(struct buf *out, int ground, const uint8_t *rgb, bool few, struct error *e)
{
	if (!few)
		return buf_printf(out, e, "\x1b[%d;2;%d;%d;%dm", ground, rgb[0], rgb[1], rgb[2]);
	/* The cube of 256-colour terminals has the levels 0, 95, 135, 175, 215, 255. */
	int cube = 16;
	for (int c = 0, weight = 36; c < 3; c++, weight /= 6)
		cube += weight * (rgb[c] < 48 ? 0 : rgb[c] < 115 ? 1 : (rgb[c] - 35) / 40);
	return buf_printf(out, e, "\x1b[%d;5;%dm", ground, cube);
}

static int draw_block_row(struct buf *out, const struct pixels *p, uint32_t y, bool few, struct error *e)
{
	const uint8_t *top = p->rgb + 3 * (size_t)y * p->width, *bottom = y + 1 < p->height ? top + 3 * (size_t)p->width : NULL;
	for (size_t x = 0; x < p->width; x++) {
		bool first = x == 0;
		if ((first || memcmp(top + 3 * x, top + 3 * x - 3, 3) != 0) && set_colour(out, 38, top + 3 * x, few, e))
			return -1;
		if (bottom && (first || memcmp(bottom + 3 * x, bottom + 3 * x - 3, 3) != 0) &&
		    set_colour(out, 48, bottom + 3 * x, few, e))
			return -1;
		if (buf_add(out, "\xe2\x96\x80", 3, e)) /* U+2580 */
			return -1;
	}
	return buf_add(out, "\x1b[0m\n", 5, e);
}

static int draw_blocks(struct buf *out, const struct pixels *p, bool few, struct error *e)
{
	for (uint32_t y = 0; y < p->height; y += 2)
		if (draw_block_row(out, p, y, few, e))
			return -1;
	return 0;
}

int terminal_draw(struct buf *out, const struct terminal *t, const struct pixels *p, struct error *e)
{
	uint32_t widest = t->kind == TERMINAL_BLOCKS ? t->columns : t->width;
	struct pixels small = {0};
	int r = 0;
	if (p->width > widest) {
		uint32_t height = (uint32_t)(((uint64_t)p->height * widest + p->width / 2) / p->width);
		r = image_scale(&small, p, widest, height ? height : 1, RESIZE_AREA, e);
		p = &small;
	}
	if (r == 0)
		r = t->kind == TERMINAL_KITTY	? draw_kitty(out, p, e)
		    : t->kind == TERMINAL_SIXEL ? draw_sixel(out, p, e)
						: draw_blocks(out, p, t->few_colours, e);
	image_free(&small);
	return r;
}
