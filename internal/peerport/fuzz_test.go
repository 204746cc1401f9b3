package peerport

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"eboot"
)

func FuzzPreface(f *testing.F) {
	f.Add("eboot-raft/1 cluster=prod from=3f0c to=9a41\n")
	f.Add("eboot-blob/1 cluster=a+b%25 from= to=\n")
	f.Add("eboot-rpc/1\n")
	f.Add("eboot-rpc/1 cluster=a cluster=b\n")
	f.Add("GET / HTTP/1.1\r\n")
	f.Add("\x16\x03\x01\x02\x00\x01") // TLS
	f.Add("eboot-rpc/1 future=1 cluster=x\nmore")
	f.Fuzz(func(t *testing.T, sent string) {
		p, err := readPreface(strings.NewReader(sent))
		slow, slowErr := readPreface(iotest.OneByteReader(strings.NewReader(sent)))
		if err == nil && (slowErr != nil || slow != p) {
			t.Fatalf("byte by byte: %+v, %v; at once: %+v", slow, slowErr, p)
		}
		if err != nil {
			var r *refusal
			if errors.As(err, &r) && !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error %v of another kind", err)
			}
			return
		}
		line := p.encode()
		if len(line) > maxPreface {
			return // escaping may make it longer than what was sent
		}
		again, err := readPreface(strings.NewReader(string(line)))
		if err != nil || again != p {
			t.Fatalf("%+v encoded is %q, decoded %+v, %v", p, line, again, err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add("ok\n")
	f.Add("conflict this server belongs to cluster \"prod\"\n")
	f.Add("ok")
	f.Add("no\n")
	f.Add("denied \x00\xff\n")
	f.Add("HTTP/1.1 400 Bad Request\r\n\r\n")
	f.Fuzz(func(t *testing.T, sent string) {
		err := readAnswer(strings.NewReader(sent))
		if accepts := strings.HasPrefix(sent, accepted); accepts != (err == nil) {
			t.Fatalf("answer %q: %v", sent, err)
		}
		var r *refusal
		if !errors.As(err, &r) {
			return
		}
		if strings.ContainsAny(r.text, "\n\x00\x1b") {
			t.Fatalf("text %q is not fit for a log", r.text)
		}
		line := r.encode()
		if len(line) > maxAnswer || strings.Count(string(line), "\n") != 1 {
			t.Fatalf("refusal encoded as %q", line)
		}
		var again *refusal
		if err := readAnswer(strings.NewReader(string(line))); !errors.As(err, &again) || !errors.Is(again.kind, r.kind) {
			t.Fatalf("%q read again: %v", line, err)
		}
	})
}
