package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"eboot"
)

func TestParsePeers(t *testing.T) {
	got, err := parsePeers([]byte(` [{"id":"a1","address":"10.0.0.1:4381"},{"id":"b2","address":"[fd00::2]:4381","non_voter":true}] `))
	want := []eboot.Member{{ID: "a1", Address: "10.0.0.1:4381", Voter: true}, {ID: "b2", Address: "[fd00::2]:4381"}}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for text, says := range map[string]string{
		``:                  "want a JSON list",
		`{"id":"a1"}`:       "want a JSON list",
		`["10.0.0.1:4381"]`: "want a JSON list",
		`[]`:                "no server of the list votes",
		`[{"id":"a1","address":"10.0.0.1:4381","non_voter":true}]`:                      "no server of the list votes",
		`[{"id":"a1","address":"10.0.0.1:4381","voter":true}]`:                          "unknown field",
		`[{"id":"a1","address":"10.0.0.1:4381"}] x`:                                     "more than one",
		`[{"address":"10.0.0.1:4381"}]`:                                                 "server 1 of the list: id: is empty",
		`[{"id":"a1","address":"10.0.0.1"}]`:                                            "want HOST:PORT",
		`[{"id":"a1","address":":4381"}]`:                                               "want HOST:PORT",
		`[{"id":"a1","address":"10.0.0.1:4381"},{"id":"a1","address":"10.0.0.2:4381"}]`: "twice",
		`[{"id":"a1","address":"10.0.0.1:4381"},{"id":"b2","address":"10.0.0.1:4381"}]`: "twice",
	} {
		if got, err := parsePeers([]byte(text)); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v; want %q", text, got, err, says)
		}
	}
}

func FuzzParsePeers(f *testing.F) {
	f.Add(`[{"id":"a1","address":"10.0.0.1:4381"}]`)
	f.Add(`[{}] `)
	f.Fuzz(func(t *testing.T, text string) {
		servers, err := parsePeers([]byte(text))
		if err != nil && !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%v is no fault of the file", err)
		}
		if err == nil && len(servers) == 0 {
			t.Error("a list without servers was taken")
		}
	})
}
