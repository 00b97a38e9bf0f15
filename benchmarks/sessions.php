<?php
// PHP's files session handler. Argument 1 is the directory, argument 2 the session's values as JSON. Each line
// "reading N" or "changing N" on stdin is answered by the nanoseconds that N of these took.

foreach ([
    'session.save_handler' => 'files',
    'session.save_path' => $argv[1],
    'session.use_cookies' => '0',
    'session.cache_limiter' => '',
    'session.gc_probability' => '0',
] as $name => $value) {
    ini_set($name, $value);
}

session_start();
$_SESSION = json_decode($argv[2], true);
session_write_close();

while (sscanf((string) fgets(STDIN), '%s %d', $what, $count) === 2) {
    $started = hrtime(true);
    if ($what === 'reading') {
        for ($i = 0; $i < $count; $i++) {
            session_start(['read_and_close' => true]);
        }
    } else {
        for ($i = 0; $i < $count; $i++) {
            session_start();
            $_SESSION['hits']++;
            session_write_close();
        }
    }
    fwrite(STDOUT, hrtime(true) - $started . "\n");
}
