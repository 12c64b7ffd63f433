/* Made by make_frechet.py with numpy and scipy.  Do not edit. */
static const struct {
	const char *name;
	int width, n, m;
	double offset;
	int rank;
	double distance, precision, recall;
} cases[] = {
	{"plain", 7, 60, 45, 0.0, 0, 0.263418231135, 1, 0.716666667},
	{"offset", 12, 200, 150, 1000.0, 0, 0.242103784, 0.993333333, 0.495},
	{"singular", 9, 40, 40, 3.0, 4, 0.996795113828, 0.9, 0.175},
	{"few", 20, 12, 15, 0.0, 0, 2.34776901187, 1, 0.666666667},
	{"equal", 6, 50, 50, 0.0, -1, 4.4408920985e-16, 1, 1},
	{"wide", 150, 400, 300, 1.0, 0, 5.60071516616, 1, 0.005},
	{"one", 1, 9, 8, 0.0, 0, 0.195110130505, 1, 0.888888889},
};
