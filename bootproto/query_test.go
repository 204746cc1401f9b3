package bootproto

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

func TestParseQuery(t *testing.T) {
	for datagram, want := range map[string]string{
		"EBOOTQ13.1.5":                        "13.1.5",
		"EBOOTQ15.0-rc1":                      "15.0-rc1",
		"EBOOTQ5.10.4~dfsg+1_x":               "5.10.4~dfsg+1_x",
		"EBOOTQ" + strings.Repeat("1", 32):    strings.Repeat("1", 32),
		"EBOOTQ" + strings.Repeat("1", 33):    "",
		"EBOOTQ":                              "",
		"EBOOT":                               "",
		"":                                    "",
		"EBOOTR\x00\x00\x0013.1.5":            "",
		"ebootq13.1.5":                        "",
		"EBOOTQ13.1.5\n":                      "",
		"EBOOTQ13.1.5\x00":                    "",
		"EBOOTQ 13.1.5":                       "",
		"EBOOTQ13.1.5é":                       "",
		"EBOOTQ" + strings.Repeat("1", 10000): "",
	} {
		version, ok := parseQuery([]byte(datagram))
		if string(version) != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", datagram, version, ok, want)
		}
	}
}

func TestAnswerable(t *testing.T) {
	for source, want := range map[string]bool{
		"10.0.0.7:40000":         true,
		"127.0.0.1:1":            true,
		"10.0.0.7:0":             false,
		"0.0.0.0:40000":          false,
		"255.255.255.255:40000":  false,
		"224.0.0.1:40000":        false,
		"[::1]:40000":            false,
		"[::ffff:10.0.0.7]:4000": false,
	} {
		if got := answerable(netip.MustParseAddrPort(source)); got != want {
			t.Errorf("%s: %v, want %v", source, got, want)
		}
	}
}

func FuzzEbootQ(f *testing.F) {
	queries, _ := recordings(f)
	for _, q := range queries {
		f.Add(q)
	}
	for _, seed := range []string{"EBOOTQ13.1.5", "EBOOTQ", "EBOOTQ\x00", "EBOOTR\x00\x11\x1013.1.5", "EBOOTQ" + strings.Repeat("9", 33)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		version, ok := parseQuery(datagram)
		if !ok {
			return
		}
		if want := append([]byte("EBOOTQ"), version...); !bytes.Equal(datagram, want) {
			t.Fatalf("%q was taken for %q", datagram, want)
		}
		reply := appendReply(make([]byte, 0, maxReply), 7, 0x1234, string(version))
		if len(reply) != len(datagram)+3 || cap(reply) != maxReply {
			t.Fatalf("a reply of %d bytes to a request of %d", len(reply), len(datagram))
		}
		if want := "EBOOTR\x07\x12\x34" + string(version); string(reply) != want {
			t.Fatalf("%q, want %q", reply, want)
		}
	})
}
