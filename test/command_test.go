package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// commandRun is how one command of the command line ended.
type commandRun struct {
	Code     int
	Out, Err string
	Took     time.Duration
	line     string
}

func (r commandRun) String() string {
	return fmt.Sprintf("eboot %s: exit %d after %v\n%s%s", r.line, r.Code, r.Took.Round(time.Millisecond), r.Out, r.Err)
}

// run runs the program against the servers given, asked in this order.
func run(t testing.TB, servers []*clusterServer, args ...string) commandRun {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, "unix://"+s.socket())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "EBOOT_ADDRESS="+strings.Join(addresses, ","))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	began := time.Now()
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return commandRun{Code: cmd.ProcessState.ExitCode(), Out: out.String(), Err: errOut.String(), Took: time.Since(began), line: strings.Join(args, " ")}
}

// Run asks this server alone.
func (s *clusterServer) Run(t testing.TB, args ...string) commandRun {
	t.Helper()
	return run(t, []*clusterServer{s}, args...)
}

// Run asks the servers of the cluster, the first one first.
func (c *serverCluster) Run(t testing.TB, args ...string) commandRun {
	t.Helper()
	return run(t, c.servers, args...)
}

// want fails the test unless the command ended with one of the codes.
func (r commandRun) want(t testing.TB, codes ...int) commandRun {
	t.Helper()
	if !slices.Contains(codes, r.Code) {
		t.Fatalf("want exit %v: %v", codes, r)
	}
	return r
}

// says fails the test unless the command has printed every one of the texts.
func (r commandRun) says(t testing.TB, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.Out+r.Err, text) {
			t.Errorf("does not say %q: %v", text, r)
		}
	}
}

// until repeats a command at one server until it prints every one of the texts.
func (s *clusterServer) until(t testing.TB, deadline time.Duration, texts []string, args ...string) commandRun {
	t.Helper()
	var last commandRun
	defer func() {
		if t.Failed() {
			t.Logf("the last answer of %s: %v", s.Name, last)
		}
	}()
	testutil.Poll(t, deadline, fmt.Sprintf("%s is to say %q", s.Name, texts), func() bool {
		last = s.Run(t, args...)
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(last.Out+last.Err, text) })
	})
	return last
}
