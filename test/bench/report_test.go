package bench

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// report is the closing table. Its zero value is empty.
type report struct {
	mu    sync.Mutex
	lines []reportLine
}

type reportLine struct{ figure, wanted, measured, verdict string }

func (r *report) add(l reportLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
}

// atMost enters a figure that is wanted at or below limit; measured says it in words.
func (r *report) atMost(figure string, value, limit float64, wanted, measured string) {
	r.judge(figure, value <= limit, wanted, measured)
}

// atLeast enters a figure that is wanted at or above limit.
func (r *report) atLeast(figure string, value, limit float64, wanted, measured string) {
	r.judge(figure, value >= limit, wanted, measured)
}

func (r *report) judge(figure string, ok bool, wanted, measured string) {
	verdict := "NOT"
	if ok {
		verdict = "ok"
	}
	r.add(reportLine{figure, wanted, measured, verdict})
}

// note enters a figure of which nothing is wanted.
func (r *report) note(figure, measured string) { r.add(reportLine{figure, "", measured, ""}) }

// print writes the table to out and, unless path is empty, to that file. Nothing was
// measured: nothing is written.
func (r *report) print(out io.Writer, path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) == 0 {
		return nil
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "\neboot, measured %s: %d processors, %s/%s, %s\n\n",
		time.Now().UTC().Format("2006-01-02 15:04 MST"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tWANTED\tMEASURED\t")
	for _, l := range r.lines {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", l.figure, l.wanted, l.measured, l.verdict)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if _, err := out.Write(text.Bytes()); err != nil || path == "" {
		return err
	}
	return os.WriteFile(path, text.Bytes(), 0o644)
}

func TestReport(t *testing.T) {
	var r report
	r.atMost("cpu", 0.36, 0.35, "≤ 0.35", "0.36")
	r.atLeast("rate", 1.8, 1.7, "≥ 1.7", "1.80")
	r.note("discovery", "9 µs")
	var out strings.Builder
	path := t.TempDir() + "/report"
	if err := r.print(&out, path); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range strings.Split(out.String(), "\n")[3:] {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := "FIGURE WANTED MEASURED|cpu ≤ 0.35 0.36 NOT|rate ≥ 1.7 1.80 ok|discovery 9 µs|"
	if strings.Join(got, "|") != want {
		t.Errorf("table %q, want %q", strings.Join(got, "|"), want)
	}
	file, err := os.ReadFile(path)
	if err != nil || string(file) != out.String() {
		t.Errorf("file %q, %v; want what was printed", file, err)
	}
}
