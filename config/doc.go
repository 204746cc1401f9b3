// Package config turns one YAML file and the environment into a Config that
// has been checked.
//
// A key is the dotted path of a value, such as boot.tcp_ports. Every key may
// also come as an environment variable: EBOOT_ and the key in upper case with _
// for the dot, EBOOT_BOOT_TCP_PORTS; lists are comma separated. The environment
// wins over the file, the file over Default. The fields of Config and their yaml
// tags are the only list of keys there is.
//
// What cannot be honoured is refused, never ignored: unknown keys and unknown
// EBOOT_ variables (with the nearest valid name), keys written twice, values of
// the wrong shape, certificates (which this version does not know), and the keys
// of a group of servers on a server that is alone. Errors name the file and line,
// or the variable, and all of them are reported at once. They wrap
// eboot.ErrInvalid. What is allowed and should not stay so is in Config.Warnings.
//
// The package starts no goroutine and keeps no state. deploy/eboot.yaml is the
// manual of the keys; a test holds it against Default.
package config
