package main

import (
	"bufio"
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"eboot/api"
)

// table writes rows in columns below a header.
func table(w io.Writer, header string, rows [][]string) error {
	out := bufio.NewWriter(w) // a tabwriter writes cell by cell
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return out.Flush()
}

// fields writes names and values, one a line.
func fields(w io.Writer, pairs ...[2]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		fmt.Fprintf(t, "%s\t%s\n", p[0], p[1])
	}
	return t.Flush()
}

func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, k+"="+v)
	}
	sort.Strings(pairs)
	return dash(strings.Join(pairs, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// bytesText writes a size for people: powers of 1000, as disks are sold.
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	for value >= 999.95 && unit < len("kMGTP")-1 {
		value, unit = value/1000, unit+1
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTP"[unit])
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// written says what a write did.
func written(w io.Writer, what string, r api.WriteResult) error {
	note := ""
	if !r.Changed {
		note = " (it was so already)"
	}
	_, err := fmt.Fprintf(w, "%s%s; generation %d\n", what, note, r.Generation)
	return err
}
