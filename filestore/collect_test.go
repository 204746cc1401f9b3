package filestore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"eboot"
)

func TestCollect(t *testing.T) {
	s := openStore(t, Options{})
	digests := put(t, s, random(10), random(20), random(30), random(300_000))
	if _, err := read(s, digests[1], 20); err != nil {
		t.Fatal(err)
	}
	in := s.Ingest()
	in.Protect(slices.Values(digests[2:3]))
	got, err := s.Collect(t.Context(), slices.Values(digests[:1]))
	want := CollectResult{Removed: 2, RemovedBytes: 300_020, Kept: 1, Protected: 1}
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, has := range []bool{true, false, true, false} {
		if s.Has(digests[i]) != has {
			t.Errorf("blob %d: has %t", i, !has)
		}
	}
	if _, err := s.Content(digests[1], 20); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("collected and still served: %v", err)
	}
	if len(s.Damaged()) != 0 || leftovers(t, s) != nil {
		t.Errorf("%v %v", s.Damaged(), leftovers(t, s))
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err = s.Collect(t.Context(), slices.Values(digests[:1])); err != nil || got.Removed != 1 {
		t.Fatalf("after Close: %+v, %v", got, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Collect(cancelled, slices.Values(digests)); !errors.Is(err, context.Canceled) || !s.Has(digests[0]) {
		t.Fatal(err)
	}
}

// TestCollectGivenUp: who cannot say what is live cancels; nothing may be removed
// then, and nothing that is known of damage forgotten.
func TestCollectGivenUp(t *testing.T) {
	s := openStore(t, Options{})
	digests := put(t, s, random(10), random(300_000))
	if err := os.WriteFile(s.path(digests[1]), random(300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digests[1], 300_000); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Collect(ctx, func(func(eboot.Digest) bool) { cancel() })
	if !errors.Is(err, context.Canceled) || len(s.Damaged()) != 1 || !s.Has(digests[0]) {
		t.Fatalf("%v; %d damaged, blob there: %t", err, len(s.Damaged()), s.Has(digests[0]))
	}
}

// TestCollectLingering: an ingest that is closed after Collect asked what is live
// still protects, since its bundle may have become live in between.
func TestCollectLingering(t *testing.T) {
	s := openStore(t, Options{})
	digests := put(t, s, random(10), random(20))
	closed, late := s.Ingest(), s.Ingest()
	closed.Protect(slices.Values(digests[:1]))
	fresh := random(40)
	live := func(yield func(eboot.Digest) bool) {
		if err := closed.Close(); err != nil {
			t.Error(err)
		}
		late.Protect(slices.Values(digests[1:]))
		if err := errors.Join(late.Put(t.Context(), eboot.DigestOf(fresh), 40, bytes.NewReader(fresh)), late.Commit(), late.Close()); err != nil {
			t.Error(err)
		}
	}
	got, err := s.Collect(t.Context(), live)
	if err != nil || got.Removed != 0 || got.Protected != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err = s.Collect(t.Context(), func(func(eboot.Digest) bool) {}); err != nil || got.Removed != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestCollectBesidePublish: publishers that ask Has after Protect and put what is
// missing find everything in the end, however often Collect runs beside them.
func TestCollectBesidePublish(t *testing.T) {
	s := openStore(t, Options{})
	contents := make([][]byte, 30)
	digests := make([]eboot.Digest, len(contents))
	for k := range contents {
		contents[k] = random(50 + k)
		digests[k] = eboot.DigestOf(contents[k])
	}
	ctx, stop := context.WithCancel(t.Context())
	var publishers, collectors sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.Collect(ctx, func(func(eboot.Digest) bool) {}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for p := range 3 {
		publishers.Go(func() {
			for round := range 15 {
				in := s.Ingest()
				mine := digests[(p*5+round)%10:][:20]
				in.Protect(slices.Values(mine))
				for k, d := range mine {
					if s.Has(d) {
						continue
					}
					c := contents[(p*5+round)%10+k]
					if err := in.Put(ctx, d, int64(len(c)), bytes.NewReader(c)); err != nil {
						t.Error(err)
					}
				}
				if err := in.Commit(); err != nil {
					t.Error(err)
				}
				for k, d := range mine {
					c := contents[(p*5+round)%10+k]
					if got, err := read(s, d, len(c)); err != nil || !bytes.Equal(got, c) {
						t.Errorf("protected and not there: %v", err)
					}
				}
				if err := in.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishers.Wait()
	stop()
	collectors.Wait()
	if len(s.Damaged()) != 0 {
		t.Fatal(s.Damaged())
	}
}
