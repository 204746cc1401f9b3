package fsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"eboot"
)

func TestResultTravels(t *testing.T) {
	l := newLog(t)
	allow := AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entryOf("10.0.0.0/8", "stable", nil)}}
	for name, r := range map[string]*Result{
		"changed": l.must(allow), "replayed": l.must(allow), "unchanged": l.must(Init{Header: l.header(), ClusterID: "c"}),
		"not found": l.apply(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("no@1")}),
		"long":      {Index: 7, Err: newRefusal(fmt.Errorf("%s: %w", strings.Repeat("\x01<é", 400), eboot.ErrConflict))},
		"too large": {Index: 1 << 60, Generation: 1 << 61, Err: fmt.Errorf("whitelist: %w", eboot.ErrTooLarge)},
	} {
		got, err := DecodeResult(r.Encode())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !sameResult(got, r) {
			t.Errorf("%s: %+v arrives as %+v", name, r, got)
		}
		for _, s := range sentinels {
			if errors.Is(r.Err, s.err) != errors.Is(got.Err, s.err) {
				t.Errorf("%s: wraps %v: %v", name, s.err, errors.Is(got.Err, s.err))
			}
		}
	}
}

func sameResult(a, b *Result) bool {
	return a.Index == b.Index && a.Generation == b.Generation && a.Changed == b.Changed && a.Replayed == b.Replayed &&
		(a.Err == nil) == (b.Err == nil) && (a.Err == nil || a.Err.Error() == b.Err.Error())
}

func TestDecodeResult(t *testing.T) {
	r, err := DecodeResult([]byte(`{"index":5,"generation":2,"code":"conflict","text":"generation is 2","later":true}`))
	if err != nil || !sameResult(r, &Result{Index: 5, Generation: 2, Err: errors.New("generation is 2")}) || !errors.Is(r.Err, eboot.ErrConflict) {
		t.Errorf("of a later version: %+v, %v", r, err)
	}
	if r, err := DecodeResult([]byte(`{"index":5,"code":"new","text":"no"}`)); err != nil || !errors.Is(r.Err, eboot.ErrInvalid) {
		t.Errorf("a code that is not known: %+v, %v", r, err)
	}
	for _, text := range []string{
		"", "{}", "null", "[]", `{"index":1}x`, `{"index":-1}`, `{"index":1,"text":"without a code"}`, `{"index":1,"changed":true,"code":"conflict"}`,
		`{"index":1,"text":"` + strings.Repeat("x", maxEncodedResult) + `"}`, "<html>",
	} {
		if r, err := DecodeResult([]byte(text)); !errors.Is(err, eboot.ErrUnknownOutcome) {
			t.Errorf("%.40q: %+v, %v", text, r, err)
		}
	}
}

// An answer is read or its outcome is unknown; what was read arrives again as it is.
func FuzzDecodeResult(f *testing.F) {
	f.Add((&Result{Index: 3, Generation: 2, Changed: true}).Encode())
	f.Add((&Result{Index: 3, Replayed: true}).Encode())
	f.Add((&Result{Index: 3, Err: newRefusal(eboot.ErrNotFound)}).Encode())
	f.Add([]byte(`{"index":3,"code":"new","text":"\ud800"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := DecodeResult(text)
		if err != nil {
			if !errors.Is(err, eboot.ErrUnknownOutcome) {
				t.Fatalf("%v does not wrap ErrUnknownOutcome", err)
			}
			return
		}
		again, err := DecodeResult(r.Encode())
		if err != nil || !sameResult(again, r) {
			t.Fatalf("%+v, then %+v: %v", r, again, err)
		}
	})
}
