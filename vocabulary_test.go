package eboot_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"eboot"
)

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "10.0.0.0/8": "10.0.0.0/8", "0.0.0.0/0": "0.0.0.0/0",
		"::ffff:10.1.2.3": "10.1.2.3/32", // an IPv4 address, as sockets write it
	} {
		if p, err := eboot.ParsePrefix(text); err != nil || p.String() != want {
			t.Errorf("ParsePrefix(%q) = %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "10", "10.0.0.1/8", "10.0.0.0/33", "fe80::1", "fe80::/10", "10.0.0.0/", "host"} {
		if p, err := eboot.ParsePrefix(text); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("ParsePrefix(%q) = %v, %v", text, p, err)
		}
	}
}

func TestRef(t *testing.T) {
	r, err := eboot.ParseRef("app-x@1.2.3+build~1")
	if err != nil || r.Name != "app-x" || r.Version != "1.2.3+build~1" {
		t.Fatalf("ParseRef = %+v, %v", r, err)
	}
	for _, text := range []string{"", "app", "app@", "@1", "a b@1", "app@1/2", "../x@1", "app@1@2", "-a@1"} {
		if _, err := eboot.ParseRef(text); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("ParseRef(%q) error = %v", text, err)
		}
	}
}

func TestJSONOfNames(t *testing.T) {
	type both struct {
		D eboot.Digest
		R eboot.Ref
	}
	for _, v := range []both{{}, {eboot.DigestOf([]byte("x")), eboot.Ref{Name: "a", Version: "1"}}} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var back both
		if err := json.Unmarshal(data, &back); err != nil || back != v {
			t.Errorf("%s came back as %v, %v", data, back, err)
		}
	}
	var back both
	if err := json.Unmarshal([]byte(`{"D":"xyz"}`), &back); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("bad digest: %v", err)
	}
}

// What is known of a stock boot only is written as such; a cured one says more.
func TestJSONOfBoots(t *testing.T) {
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	stock := eboot.Boot{
		Slave: netip.MustParseAddr("10.1.2.3"), Server: "s1", ERTS: "13.1.5", Channel: "stable", Bundle: eboot.Ref{Name: "a", Version: "1"},
		Loader: eboot.LoaderStock, Phase: eboot.BootLoading, Began: at, Latest: at, Requests: 1, Bytes: 2,
	}
	cured := stock
	cured.Loader, cured.Phase, cured.Loaded = eboot.LoaderEboot, eboot.BootStarted, at
	cured.Cured = &eboot.CuredBoot{
		Number: 1<<48 - 1, Mode: "embedded", TakenOver: true, Phases: []eboot.BootMark{{Phase: "started", AtMS: 812}}, Switches: 1, Local: 30,
	}
	for _, tc := range []struct {
		boot eboot.Boot
		want string
	}{
		{stock, `{"id":"","revision":0,"slave":"10.1.2.3","server":"s1","erts":"13.1.5","channel":"stable","bundle":"a@1","manifest":"","loader":"stock",` +
			`"phase":"loading","began":"2024-05-06T07:08:09Z","latest":"2024-05-06T07:08:09Z","requests":1,"bytes":2}`},
		{cured, `{"id":"","revision":0,"slave":"10.1.2.3","server":"s1","erts":"13.1.5","channel":"stable","bundle":"a@1","manifest":"","loader":"eboot",` +
			`"phase":"started","began":"2024-05-06T07:08:09Z","latest":"2024-05-06T07:08:09Z","loaded":"2024-05-06T07:08:09Z","requests":1,"bytes":2,` +
			`"cured":{"number":281474976710655,"mode":"embedded","taken_over":true,"phases":[{"phase":"started","at_ms":812}],"switches":1,"local":30}}`},
	} {
		data, err := json.Marshal(tc.boot)
		if err != nil || string(data) != tc.want {
			t.Errorf("got  %s, %v\nwant %s", data, err, tc.want)
		}
		var back eboot.Boot
		if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, tc.boot) {
			t.Errorf("came back as %+v, %v", back, err)
		}
	}
}

func TestCheckLabels(t *testing.T) {
	if err := eboot.CheckLabels(map[string]string{"rack": "7 left"}); err != nil {
		t.Error(err)
	}
	for _, labels := range []map[string]string{{"": "x"}, {"a b": "x"}, {"a": "x\ny"}} {
		if err := eboot.CheckLabels(labels); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("CheckLabels(%q) = %v", labels, err)
		}
	}
}

func TestBundleCheck(t *testing.T) {
	d := eboot.DigestOf(nil)
	good := eboot.Bundle{Name: "a", Version: "1", ERTS: "13.1.5", Manifest: d, Times: d, BootScript: "bin/start.boot"}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*eboot.Bundle){
		"Name":       func(b *eboot.Bundle) { b.Name = "" },
		"ERTS":       func(b *eboot.Bundle) { b.ERTS = "x" },
		"Manifest":   func(b *eboot.Bundle) { b.Manifest = eboot.Digest{} },
		"BootScript": func(b *eboot.Bundle) { b.BootScript = "../start.boot" },
		"SysConfig":  func(b *eboot.Bundle) { b.SysConfig = "/etc/passwd" },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
